//! The one module with `unsafe`: a thin, safe wrapper around `nghttp2_session`.
//!
//! Why it is sound, rule by rule:
//!
//! * **Ownership.** [`Connection`] owns the C session: made in `new`, freed in `Drop`, never
//!   copied out. Its raw pointer makes it neither `Send` nor `Sync`, and every call into the
//!   library takes `&mut Connection` (or `&` for the two pure questions), so no two calls
//!   overlap.
//! * **User data.** The C session keeps no pointer of ours between calls. `receive` and `send`
//!   lend the handler for exactly one library call: the pointer is stored before it and cleared
//!   after it. No other library function used here runs callbacks.
//! * **Aliasing.** While such a call runs, the caller's `&mut H` is not used; each callback makes
//!   one `&mut H` from the stored pointer and drops it before it returns. Callbacks do not nest:
//!   a handler cannot reach the `Connection`, and the one library function that a callback
//!   calls (`nghttp2_submit_trailer`) only queues.
//! * **Lent bytes.** Slices handed to the handler live as long as the callback, by signature.
//!   `send` returns a slice of the library's frame buffer, which stays valid until the next
//!   call on the session; the borrow of `self` keeps that call away.
//! * **Unwinding.** Callbacks are `extern "C"`: a panic in a handler aborts the process instead of
//!   unwinding through C frames.
//! * **Names and values.** [`NameValue`] skips the library's copy only for `'static` bytes. All
//!   others are copied within the submitting call.
//! * **Memory.** The library allocates through [`Memory`] (`nghttp2/memory.rs`), which its `Setup`
//!   and every `Connection` keep alive.
//! * **Slots.** The data source of a response is a plain number (the handler's slot), not a
//!   pointer: a stale one is at worst a wrong index that the handler checks.

#![allow(unsafe_code, reason = "the FFI boundary; see the header for the argument")]

mod memory;

use std::{
    ffi::{c_int, c_void},
    marker::PhantomData,
    ptr::{self, NonNull},
    rc::Rc,
    slice,
};

use libnghttp2_sys as ffi;
use memory::Memory;

/// Frame types that handlers look at. Source: RFC 9113, section 6.
pub(crate) mod frame {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const FLAG_END_STREAM: u8 = 1;
    pub(crate) const FLAG_ACK: u8 = 1;
}

/// Error codes that go into RST_STREAM and GOAWAY. Source: RFC 9113, section 7.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ErrorCode {
    NoError = 0,
    Protocol = 1,
    EnhanceYourCalm = 11,
}

/// A frame's header.
#[derive(Clone, Copy)]
pub(crate) struct FrameHead {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) length: usize,
    pub(crate) stream: i32,
}

/// What a response has for its next DATA frame.
pub(crate) enum Read<'a> {
    /// This many bytes, and more to come.
    Some(usize),
    /// Nothing now: the library sets the stream aside until `nghttp2_session_resume_data`,
    /// which only a streaming response needs.
    Later,
    /// This many bytes (may be none), then these trailers end the stream.
    Last(usize, &'a [NameValue<'a>]),
}

/// What the library calls back into. Methods must not assume that the stream they name is
/// known to them: the library also speaks of streams that it refused itself.
pub(crate) trait Handler {
    /// The header of a frame arrived that will not be skipped.
    fn frame_begins(&mut self, head: FrameHead);
    /// A HEADERS frame begins; `opens` tells a request's headers from its trailers.
    fn headers_begin(&mut self, stream: i32, opens: bool);
    /// One header field.
    fn header(&mut self, stream: i32, name: &[u8], value: &[u8]);
    /// A piece of a DATA frame.
    fn data(&mut self, stream: i32, bytes: &[u8]);
    /// A whole frame has arrived and was valid.
    fn frame_received(&mut self, head: FrameHead);
    /// The stream is over, for whatever reason; it will not be named again.
    fn stream_closed(&mut self, stream: i32);
    /// The response in `slot` may send up to `limit` bytes.
    fn read(&mut self, slot: u32, limit: usize) -> Read<'_>;
    /// Takes the DATA frame that `read` announced: `head`, then `length` bytes of the response.
    fn write_data(&mut self, slot: u32, head: &[u8; 9], length: usize) -> Written;
}

/// What became of a DATA frame.
pub(crate) enum Written {
    /// Taken; the next may come.
    More,
    /// Taken; `send` returns now.
    Enough,
    /// The slot does not hold so many bytes (a bug): the stream is reset.
    Missing,
}

/// The session cannot go on. Environment and peer failures alike end the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Too many unsent acknowledgements: the peer floods and does not read.
    Flooded,
    /// The library could not allocate.
    OutOfMemory,
    /// What the library calls fatal; its number.
    Fatal(i32),
}

impl Failure {
    fn from_code(code: isize) -> Self {
        match code as ffi::nghttp2_error {
            ffi::NGHTTP2_ERR_FLOODED => Self::Flooded,
            ffi::NGHTTP2_ERR_NOMEM => Self::OutOfMemory,
            other => Self::Fatal(other),
        }
    }
}

fn check(code: c_int) -> Result<(), Failure> {
    if code < 0 { Err(Failure::from_code(code as isize)) } else { Ok(()) }
}

/// One header field to be sent.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct NameValue<'a>(ffi::nghttp2_nv, PhantomData<&'a [u8]>);

impl<'a> NameValue<'a> {
    /// A field known at compile time: never copied, and indexed by HPACK, so that its second
    /// use on a connection is one byte.
    pub(crate) const fn fixed(name: &'static str, value: &'static str) -> Self {
        Self::raw(
            name,
            value.as_bytes(),
            (ffi::NGHTTP2_NV_FLAG_NO_COPY_NAME | ffi::NGHTTP2_NV_FLAG_NO_COPY_VALUE) as u8,
        )
    }

    /// A field made for one answer: copied at submission, kept out of the HPACK table.
    pub(crate) const fn once(name: &'static str, value: &'a [u8]) -> Self {
        Self::raw(
            name,
            value,
            (ffi::NGHTTP2_NV_FLAG_NO_COPY_NAME | ffi::NGHTTP2_NV_FLAG_NO_INDEX) as u8,
        )
    }

    const fn raw(name: &'static str, value: &'a [u8], flags: u8) -> Self {
        // The library's struct says `*mut` but only ever reads.
        Self(
            ffi::nghttp2_nv {
                name: name.as_ptr().cast_mut(),
                value: value.as_ptr().cast_mut(),
                namelen: name.len(),
                valuelen: value.len(),
                flags,
            },
            PhantomData,
        )
    }

    fn as_raw(list: &[Self]) -> *const ffi::nghttp2_nv {
        // `repr(transparent)`: a slice of these is a slice of those.
        list.as_ptr().cast()
    }
}

/// Callbacks and options that all sessions of one endpoint are made from.
pub(crate) struct Setup<H> {
    callbacks: NonNull<ffi::nghttp2_session_callbacks>,
    options: NonNull<ffi::nghttp2_option>,
    memory: Rc<Memory>,
    handler: PhantomData<fn(&mut H)>,
}

impl<H: Handler> Setup<H> {
    /// `acks_max`: unsent SETTINGS and PING acknowledgements above which the peer floods.
    pub(crate) fn new(acks_max: usize) -> Result<Self, Failure> {
        let mut callbacks = ptr::null_mut();
        // SAFETY: the out-pointer is valid; on success it is ours and non-null.
        check(unsafe { ffi::nghttp2_session_callbacks_new(&mut callbacks) })?;
        let callbacks = NonNull::new(callbacks).ok_or(Failure::OutOfMemory)?;
        let mut options = ptr::null_mut();
        // SAFETY: as above.
        if let Err(failure) = check(unsafe { ffi::nghttp2_option_new(&mut options) }) {
            // SAFETY: made above, not used after.
            unsafe { ffi::nghttp2_session_callbacks_del(callbacks.as_ptr()) };
            return Err(failure);
        }
        let options = NonNull::new(options).ok_or(Failure::OutOfMemory)?;
        let setup = Self { callbacks, options, memory: Rc::default(), handler: PhantomData };
        let (c, o) = (callbacks.as_ptr(), options.as_ptr());
        // SAFETY: both objects are live and ours; the functions have the types that the
        // library documents, monomorphised for the handler that `Connection<H>` lends.
        unsafe {
            ffi::nghttp2_session_callbacks_set_on_begin_frame_callback(
                c,
                Some(on_begin_frame::<H>),
            );
            ffi::nghttp2_session_callbacks_set_on_begin_headers_callback(
                c,
                Some(on_begin_headers::<H>),
            );
            ffi::nghttp2_session_callbacks_set_on_header_callback(c, Some(on_header::<H>));
            ffi::nghttp2_session_callbacks_set_on_data_chunk_recv_callback(
                c,
                Some(on_data_chunk::<H>),
            );
            ffi::nghttp2_session_callbacks_set_on_frame_recv_callback(c, Some(on_frame_recv::<H>));
            ffi::nghttp2_session_callbacks_set_on_stream_close_callback(
                c,
                Some(on_stream_close::<H>),
            );
            ffi::nghttp2_session_callbacks_set_send_data_callback(c, Some(on_send_data::<H>));
            ffi::nghttp2_option_set_no_auto_window_update(o, 1);
            // `request_head.rs` checks what HTTP demands of fields.
            ffi::nghttp2_option_set_no_http_messaging(o, 1);
            ffi::nghttp2_option_set_max_outbound_ack(o, acks_max);
            // The library's own rate limits read the wall clock. Sessions count control frames
            // themselves, on the time they are told, so these two are set out of reach.
            ffi::nghttp2_option_set_stream_reset_rate_limit(o, u64::MAX, 0);
            ffi::nghttp2_option_set_glitch_rate_limit(o, u64::MAX, 0);
        }
        Ok(setup)
    }
}

impl<H> Drop for Setup<H> {
    fn drop(&mut self) {
        // SAFETY: made in `new`, owned here; sessions copied what they need.
        unsafe {
            ffi::nghttp2_session_callbacks_del(self.callbacks.as_ptr());
            ffi::nghttp2_option_del(self.options.as_ptr());
        }
    }
}

/// A server's side of one HTTP/2 connection.
pub(crate) struct Connection<H> {
    session: NonNull<ffi::nghttp2_session>,
    /// Where the session's memory comes from and goes back to, at the latest in `drop`.
    _memory: Rc<Memory>,
    handler: PhantomData<fn(&mut H)>,
}

/// What the server announces in its SETTINGS and first WINDOW_UPDATE.
pub(crate) struct Announced {
    pub(crate) streams_max: u32,
    pub(crate) stream_window: u32,
    pub(crate) connection_window: u32,
    pub(crate) header_bytes_max: u32,
}

impl<H: Handler> Connection<H> {
    pub(crate) fn new(setup: &Setup<H>, announced: &Announced) -> Result<Self, Failure> {
        let mut session = ptr::null_mut();
        let mut functions = memory::functions(&setup.memory);
        // SAFETY: the out-pointer is valid, setup's objects are live; user data is set per call. The
        // library copies `functions`; what its `mem_user_data` points to lives as long as `_memory`.
        check(unsafe {
            ffi::nghttp2_session_server_new3(
                &mut session,
                setup.callbacks.as_ptr(),
                ptr::null_mut(),
                setup.options.as_ptr(),
                &mut functions,
            )
        })?;
        let session = NonNull::new(session).ok_or(Failure::OutOfMemory)?;
        let mut this = Self { session, _memory: Rc::clone(&setup.memory), handler: PhantomData };
        let entry = |id: ffi::nghttp2_settings_id, value| ffi::nghttp2_settings_entry {
            settings_id: id as i32,
            value,
        };
        let settings = [
            entry(ffi::NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS, announced.streams_max),
            entry(ffi::NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, announced.stream_window),
            entry(ffi::NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE, announced.header_bytes_max),
        ];
        // SAFETY: live session; the array outlives the call, which copies it.
        check(unsafe {
            ffi::nghttp2_submit_settings(session.as_ptr(), 0, settings.as_ptr(), settings.len())
        })?;
        this.set_window(0, announced.connection_window)?;
        Ok(this)
    }

    /// Feeds bytes from the peer; runs callbacks.
    pub(crate) fn receive(&mut self, handler: &mut H, bytes: &[u8]) -> Result<(), Failure> {
        let session = self.session.as_ptr();
        // SAFETY: the handler is lent for the one call in the middle; see the header.
        let count = unsafe {
            ffi::nghttp2_session_set_user_data(session, ptr::from_mut(handler).cast());
            let count = ffi::nghttp2_session_mem_recv2(session, bytes.as_ptr(), bytes.len());
            ffi::nghttp2_session_set_user_data(session, ptr::null_mut());
            count
        };
        if count < 0 {
            return Err(Failure::from_code(count));
        }
        // No callback of `receive` pauses, so the library takes everything. Were it ever not so, the
        // connection would be out of step: it ends, the process does not.
        if count as usize == bytes.len() { Ok(()) } else { Err(Failure::Fatal(0)) }
    }

    /// The next bytes for the peer; runs callbacks. What the handler's `write_data` took during
    /// the call comes before them. Empty: nothing more can go now, or the handler had enough.
    pub(crate) fn send(&mut self, handler: &mut H) -> Result<&[u8], Failure> {
        let session = self.session.as_ptr();
        let mut data = ptr::null();
        // SAFETY: as in `receive`.
        let count = unsafe {
            ffi::nghttp2_session_set_user_data(session, ptr::from_mut(handler).cast());
            let count = ffi::nghttp2_session_mem_send2(session, &mut data);
            ffi::nghttp2_session_set_user_data(session, ptr::null_mut());
            count
        };
        match count {
            0 => Ok(&[]),
            // SAFETY: the library's buffer of that many bytes, untouched until the next call.
            1.. => Ok(unsafe { slice::from_raw_parts(data, count as usize) }),
            _ => Err(Failure::from_code(count)),
        }
    }

    /// Answers `stream`: headers, then DATA as the handler's `read` for `slot` yields it.
    pub(crate) fn respond(
        &mut self,
        stream: i32,
        slot: u32,
        headers: &[NameValue<'_>],
    ) -> Result<(), Failure> {
        let provider = ffi::nghttp2_data_provider2 {
            source: ffi::nghttp2_data_source { fd: slot as c_int },
            read_callback: Some(on_read::<H>),
        };
        // SAFETY: live session; arguments outlive the call, which copies what is not 'static.
        check(unsafe {
            ffi::nghttp2_submit_response2(
                self.session.as_ptr(),
                stream,
                NameValue::as_raw(headers),
                headers.len(),
                &provider,
            )
        })
    }

    /// Answers `stream` with headers alone.
    pub(crate) fn respond_headers_only(
        &mut self,
        stream: i32,
        headers: &[NameValue<'_>],
    ) -> Result<(), Failure> {
        // SAFETY: as in `respond`; no data provider means END_STREAM on the headers.
        check(unsafe {
            ffi::nghttp2_submit_response2(
                self.session.as_ptr(),
                stream,
                NameValue::as_raw(headers),
                headers.len(),
                ptr::null(),
            )
        })
    }

    /// Resets a stream.
    pub(crate) fn reset(&mut self, stream: i32, code: ErrorCode) -> Result<(), Failure> {
        // SAFETY: live session.
        check(unsafe {
            ffi::nghttp2_submit_rst_stream(self.session.as_ptr(), 0, stream, code as u32)
        })
    }

    /// Bytes of DATA that the connection's window gets back. WINDOW_UPDATE goes out once half
    /// the window has been consumed.
    pub(crate) fn consume(&mut self, bytes: usize) -> Result<(), Failure> {
        // SAFETY: live session.
        check(unsafe { ffi::nghttp2_session_consume_connection(self.session.as_ptr(), bytes) })
    }

    /// How much the peer may send in all on `stream` (0: on the connection) until consumed.
    pub(crate) fn set_window(&mut self, stream: i32, bytes: u32) -> Result<(), Failure> {
        let bytes = i32::try_from(bytes).unwrap_or(i32::MAX);
        // SAFETY: live session.
        check(unsafe {
            ffi::nghttp2_session_set_local_window_size(self.session.as_ptr(), 0, stream, bytes)
        })
    }

    /// GOAWAY that names no stream, and a PING: when it is answered, the peer has seen the notice.
    pub(crate) fn announce_shutdown(&mut self) -> Result<(), Failure> {
        // SAFETY: live session; without a payload the PING carries zeros.
        unsafe {
            check(ffi::nghttp2_submit_shutdown_notice(self.session.as_ptr()))?;
            check(ffi::nghttp2_submit_ping(self.session.as_ptr(), 0, ptr::null()))
        }
    }

    /// GOAWAY that names the last stream taken; later ones are refused, open ones go on.
    pub(crate) fn refuse_new_streams(&mut self) -> Result<(), Failure> {
        // SAFETY: live session, no payload.
        check(unsafe {
            let last = ffi::nghttp2_session_get_last_proc_stream_id(self.session.as_ptr());
            ffi::nghttp2_submit_goaway(
                self.session.as_ptr(),
                0,
                last,
                ErrorCode::NoError as u32,
                ptr::null(),
                0,
            )
        })
    }

    /// GOAWAY with an error; after it nothing is read or written.
    pub(crate) fn terminate(&mut self, code: ErrorCode) {
        // SAFETY: live session. Fails only without memory; the caller closes in any case.
        let _closing_anyway =
            unsafe { ffi::nghttp2_session_terminate_session(self.session.as_ptr(), code as u32) };
    }

    /// False: the connection is to be closed once nothing is left to write.
    pub(crate) fn wants_read(&self) -> bool {
        // SAFETY: live session; the function only reads.
        unsafe { ffi::nghttp2_session_want_read(self.session.as_ptr()) != 0 }
    }

    /// Whether `send` has something that the peer's windows let through.
    pub(crate) fn wants_write(&self) -> bool {
        // SAFETY: live session; the function only reads.
        unsafe { ffi::nghttp2_session_want_write(self.session.as_ptr()) != 0 }
    }
}

impl<H> Drop for Connection<H> {
    fn drop(&mut self) {
        // SAFETY: made in `new`, owned here. Runs no callbacks.
        unsafe { ffi::nghttp2_session_del(self.session.as_ptr()) };
    }
}

/// The handler that the running call has lent.
///
/// # Safety
/// `user_data` is what `receive` or `send` of a `Connection<H>` stored, or null; no other
/// reference made by this function is alive.
unsafe fn lent<'a, H>(user_data: *mut c_void) -> Option<&'a mut H> {
    // SAFETY: by the contract above.
    unsafe { user_data.cast::<H>().as_mut() }
}

/// # Safety
/// `data` points to `length` readable bytes when `length` is not 0.
unsafe fn bytes<'a>(data: *const u8, length: usize) -> &'a [u8] {
    // The library may pass null for nothing, which a slice must not hold.
    // SAFETY: by the contract above.
    if length == 0 { &[] } else { unsafe { slice::from_raw_parts(data, length) } }
}

fn head(raw: &ffi::nghttp2_frame_hd) -> FrameHead {
    FrameHead { kind: raw.type_, flags: raw.flags, length: raw.length, stream: raw.stream_id }
}

unsafe extern "C" fn on_begin_frame<H: Handler>(
    _: *mut ffi::nghttp2_session,
    hd: *const ffi::nghttp2_frame_hd,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: the library passes a valid header and the user data of the running call.
    let (Some(handler), hd) = (unsafe { (lent::<H>(user_data), &*hd) }) else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    handler.frame_begins(head(hd));
    0
}

unsafe extern "C" fn on_begin_headers<H: Handler>(
    _: *mut ffi::nghttp2_session,
    frame: *const ffi::nghttp2_frame,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: a valid frame, of type HEADERS (a server gets no PUSH_PROMISE), so that reading
    // the union as headers is right.
    let (Some(handler), headers) = (unsafe { (lent::<H>(user_data), &(*frame).headers) }) else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    handler.headers_begin(headers.hd.stream_id, headers.cat == ffi::NGHTTP2_HCAT_REQUEST);
    0
}

unsafe extern "C" fn on_header<H: Handler>(
    _: *mut ffi::nghttp2_session,
    frame: *const ffi::nghttp2_frame,
    name: *const u8,
    name_length: usize,
    value: *const u8,
    value_length: usize,
    _flags: u8,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: a valid frame, whose header every member of the union begins with.
    let (Some(handler), hd) = (unsafe { (lent::<H>(user_data), &(*frame).hd) }) else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    // SAFETY: the library passes pointers to that many bytes, valid during the callback.
    let (name, value) = unsafe { (bytes(name, name_length), bytes(value, value_length)) };
    handler.header(hd.stream_id, name, value);
    0
}

unsafe extern "C" fn on_data_chunk<H: Handler>(
    _: *mut ffi::nghttp2_session,
    _flags: u8,
    stream: i32,
    data: *const u8,
    length: usize,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: valid for `length` bytes of the input during the callback.
    let (Some(handler), data) = (unsafe { (lent::<H>(user_data), bytes(data, length)) }) else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    handler.data(stream, data);
    0
}

unsafe extern "C" fn on_frame_recv<H: Handler>(
    _: *mut ffi::nghttp2_session,
    frame: *const ffi::nghttp2_frame,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: a valid frame, whose header every member of the union begins with.
    let (Some(handler), hd) = (unsafe { (lent::<H>(user_data), &(*frame).hd) }) else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    handler.frame_received(head(hd));
    0
}

unsafe extern "C" fn on_stream_close<H: Handler>(
    _: *mut ffi::nghttp2_session,
    stream: i32,
    _error_code: u32,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: the user data of the running call.
    let Some(handler) = (unsafe { lent::<H>(user_data) }) else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    handler.stream_closed(stream);
    0
}

unsafe extern "C" fn on_read<H: Handler>(
    session: *mut ffi::nghttp2_session,
    stream: i32,
    _buffer: *mut u8,
    limit: usize,
    flags: *mut u32,
    source: *mut ffi::nghttp2_data_source,
    user_data: *mut c_void,
) -> ffi::nghttp2_ssize {
    // SAFETY: `source` is the library's copy of what `respond` passed, always with `fd` set.
    let (Some(handler), slot) = (unsafe { (lent::<H>(user_data), (*source).fd as u32) }) else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE as isize;
    };
    let (count, trailers) = match handler.read(slot, limit) {
        Read::Later => return ffi::NGHTTP2_ERR_DEFERRED as isize,
        Read::Some(count) => (count, None),
        Read::Last(count, trailers) => (count, Some(trailers)),
    };
    // The bytes themselves are taken by `on_send_data`, straight into the output: one copy less.
    let mut data_flags = ffi::NGHTTP2_DATA_FLAG_NO_COPY;
    if let Some(trailers) = trailers {
        data_flags |= ffi::NGHTTP2_DATA_FLAG_EOF | ffi::NGHTTP2_DATA_FLAG_NO_END_STREAM;
        // SAFETY: the library allows this call inside this callback; it queues and runs no
        // callback, so the handler's borrow in `trailers` meets no other.
        let code = unsafe {
            ffi::nghttp2_submit_trailer(
                session,
                stream,
                NameValue::as_raw(trailers),
                trailers.len(),
            )
        };
        if code < 0 {
            return code as isize;
        }
    }
    // SAFETY: the library passes a valid out-pointer.
    unsafe { *flags = data_flags };
    count as isize
}

unsafe extern "C" fn on_send_data<H: Handler>(
    _: *mut ffi::nghttp2_session,
    _frame: *mut ffi::nghttp2_frame,
    frame_head: *const u8,
    length: usize,
    source: *mut ffi::nghttp2_data_source,
    user_data: *mut c_void,
) -> c_int {
    // SAFETY: nine bytes of frame header, by the library's contract; `fd` as in `on_read`. No
    // padding callback is set, so a frame is its header and `length` bytes.
    let (Some(handler), frame_head, slot) =
        (unsafe { (lent::<H>(user_data), &*frame_head.cast::<[u8; 9]>(), (*source).fd as u32) })
    else {
        return ffi::NGHTTP2_ERR_CALLBACK_FAILURE;
    };
    match handler.write_data(slot, frame_head, length) {
        Written::More => 0,
        Written::Enough => ffi::NGHTTP2_ERR_PAUSE,
        Written::Missing => ffi::NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE,
    }
}

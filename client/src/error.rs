//! Why a call failed, as an enum that callers match.
//!
//! What matters to a caller is whether something was applied: `Refused` and `Unreachable` say
//! that nothing was, `OutcomeUnknown` says that nobody knows. So the line between the last two is
//! drawn with care, from the transport's own errors (see [`from_status`]), and in doubt the outcome
//! is unknown.

use std::{collections::BTreeMap, error::Error as StdError, fmt, sync::Arc, time::Duration};

use stateside_proto::v1;
use stateside_types::Reason;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// A failed call, or one failed entry of a batch. Cheap to clone.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Error {
    /// A node (or this library, where it can tell beforehand) refused. Nothing was applied.
    #[error("{0}")]
    Refused(Arc<Refused>),
    /// No connection could be made, or the call was not sent on it. Nothing was applied.
    #[error("cannot reach {address}: {why}")]
    Unreachable {
        /// Where.
        address: Arc<str>,
        /// What the operating system or the transport said.
        why: Arc<str>,
    },
    /// A write was sent and no answer arrived: it may or may not have been applied.
    #[error(
        "the outcome of the write is unknown: {why}; read the keys to see whether it took effect"
    )]
    OutcomeUnknown {
        /// What happened instead of an answer.
        why: Arc<str>,
    },
    /// A read got no answer in time, or the call waited for its turn until its time was up.
    /// Nothing was applied.
    #[error(
        "no answer within {deadline:?}; allow more time, or see whether the node is overloaded"
    )]
    DeadlineExceeded {
        /// The time that the call had.
        deadline: Duration,
    },
    /// A read lost its connection. Nothing was applied.
    #[error("lost the connection to {address}: {why}")]
    ConnectionLost {
        /// To where.
        address: Arc<str>,
        /// What the transport said.
        why: Arc<str>,
    },
    /// The other side does not behave as a Stateside node does.
    #[error("{address} does not answer as a Stateside node: {why}")]
    Protocol {
        /// Who.
        address: Arc<str>,
        /// What is wrong with the answer.
        why: Arc<str>,
    },
    /// The text is no endpoint.
    #[error("`{endpoint}` is not an endpoint: {why}")]
    InvalidEndpoint {
        /// What was given.
        endpoint: Arc<str>,
        /// What to write instead.
        why: &'static str,
    },
}

/// A refusal, as `google.rpc.ErrorInfo` and `RetryInfo` describe it.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// The stable reason; `None` when the node knows reasons that this library does not, or when
    /// something between client and node refused.
    pub reason: Option<Reason>,
    /// The reason as it was sent; empty when none was.
    pub reason_name: String,
    /// The gRPC status code.
    pub code: Code,
    /// For people: what happened and what to do.
    pub message: String,
    /// After how long a retry makes sense. `None`: a retry as is will fail again.
    pub retry_after: Option<Duration>,
    /// Stable keys for programs, such as `entry`, `version`, `limit`.
    pub metadata: BTreeMap<String, String>,
}

impl Error {
    /// The stable reason, when the call was refused for a known one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Self::Refused(refused) => refused.reason,
            _ => None,
        }
    }

    /// A refusal that this library makes itself, with the words a node would use.
    pub(crate) fn refused(reason: Reason, message: impl fmt::Display) -> Self {
        Self::Refused(Arc::new(Refused {
            reason: Some(reason),
            reason_name: reason.as_str().to_owned(),
            code: Code::from_i32(reason.code() as i32),
            message: format!("{message}; {}", reason.advice()),
            retry_after: None,
            metadata: BTreeMap::new(),
        }))
    }
}

impl Refused {
    /// Whether the request itself is at fault: sent again as it is, it fails again.
    pub fn is_invalid_argument(&self) -> bool {
        self.code == Code::InvalidArgument
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.reason_name.is_empty() {
            write!(f, "{:?}: {}", self.code, self.message)
        } else {
            write!(f, "{}: {}", self.reason_name, self.message)
        }
    }
}

impl From<v1::EntryError> for Error {
    fn from(error: v1::EntryError) -> Self {
        let reason = Reason::from_name(&error.reason);
        let metadata: BTreeMap<_, _> = error.metadata.into_iter().collect();
        // Only writes are answered entry by entry.
        if says_unknown(reason, &metadata) {
            return Self::OutcomeUnknown { why: error.message.into() };
        }
        Self::Refused(Arc::new(Refused {
            reason,
            reason_name: error.reason,
            code: Code::from_i32(error.code),
            message: error.message,
            retry_after: (error.retry_after_ms > 0)
                .then(|| Duration::from_millis(u64::from(error.retry_after_ms))),
            metadata,
        }))
    }
}

/// What a call does on the node: decides what a lost answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing.
    Read,
    /// Something.
    Write {
        /// Whether doing it again might do something else: an entry has a condition, or adds to
        /// what is there.
        only_once: bool,
    },
}

impl Effect {
    pub(crate) fn is_read(self) -> bool {
        self == Self::Read
    }
}

/// Turns what tonic reports into an error. The chain of sources tells the cases apart:
///
/// ```text
/// status from the node (ErrorInfo, or no source) ─► Refused, but DEADLINE_EXCEEDED of a write, and
///                                   LOG_UNAVAILABLE that says so ─► OutcomeUnknown
/// hyper: canceled                  the request never left the client's queue ─┐
/// h2: GOAWAY from the node         its stream is above the last one handled   ├► Unreachable
/// h2: REFUSED_STREAM from the node says that nothing was processed           ─┘
/// h2: noticed by this side         not HTTP/2 ─► Protocol
/// anything else                    a write ─► OutcomeUnknown, a read ─► ConnectionLost
/// ```
/// GOAWAY: h2 fails a stream with a remote GOAWAY only when its id is above the frame's last
/// stream id, which RFC 9113 section 6.8 says "might safely be retried"; streams below it end by
/// an IO error when the connection closes. REFUSED_STREAM: section 8.7.
pub(crate) fn from_status(status: &Status, address: &Arc<str>, effect: Effect) -> Error {
    let mut source = StdError::source(status);
    let mut why: Option<String> = None;
    while let Some(error) = source {
        why = Some(error.to_string());
        if error.downcast_ref::<hyper::Error>().is_some_and(hyper::Error::is_canceled) {
            return unreachable(address, "the connection closed before the call was sent");
        }
        if let Some(error) = error.downcast_ref::<h2::Error>() {
            if error.is_remote()
                && (error.is_go_away() || error.reason() == Some(h2::Reason::REFUSED_STREAM))
            {
                return unreachable(address, "the node is closing the connection");
            }
            if error.is_library() && error.is_go_away() {
                return Error::Protocol {
                    address: Arc::clone(address),
                    why: format!("not HTTP/2 ({error})").into(),
                };
            }
        }
        source = error.source();
    }
    match why {
        Some(why) => lost(address, &why, effect),
        None => from_node(status, address, effect),
    }
}

/// An answer did not arrive.
pub(crate) fn lost(address: &Arc<str>, why: &str, effect: Effect) -> Error {
    match effect {
        Effect::Read => Error::ConnectionLost { address: Arc::clone(address), why: why.into() },
        Effect::Write { .. } => Error::OutcomeUnknown {
            why: format!("the connection to {address} was lost before its answer ({why})").into(),
        },
    }
}

pub(crate) fn unreachable(address: &Arc<str>, why: &str) -> Error {
    Error::Unreachable { address: Arc::clone(address), why: why.into() }
}

/// A status that arrived, or that tonic made of an answer without one.
fn from_node(status: &Status, address: &Arc<str>, effect: Effect) -> Error {
    let info = status.get_details_error_info();
    let (reason_name, metadata) = match info {
        Some(info) => (info.reason, info.metadata.into_iter().collect()),
        None => (String::new(), BTreeMap::new()),
    };
    let reason = Reason::from_name(&reason_name);
    if reason == Some(Reason::DeadlineExceeded) && !effect.is_read() {
        return Error::OutcomeUnknown { why: status.message().into() };
    }
    if says_unknown(reason, &metadata) && !effect.is_read() {
        return Error::OutcomeUnknown { why: status.message().into() };
    }
    if reason_name.is_empty() && matches!(status.code(), Code::Unknown | Code::Internal) {
        // No Stateside node answers so: a proxy, another server, or an answer cut short.
        let why = if status.message().is_empty() {
            "an answer without a status"
        } else {
            status.message()
        };
        return match effect {
            Effect::Read => Error::Protocol { address: Arc::clone(address), why: why.into() },
            Effect::Write { .. } => {
                Error::OutcomeUnknown { why: format!("{address} answered: {why}").into() }
            }
        };
    }
    if status.code() == Code::Unimplemented
        && (reason_name.is_empty() || reason == Some(Reason::UnknownMethod))
    {
        // Most often a data call that went to the control port, or the other way round.
        let why = "it does not know this call; is this the node's other port? (data: 7400, control: 7401 by default)";
        return Error::Protocol { address: Arc::clone(address), why: why.into() };
    }
    Error::Refused(Arc::new(Refused {
        reason,
        reason_name,
        code: status.code(),
        message: status.message().to_owned(),
        retry_after: status.get_details_retry_info().and_then(|info| info.retry_delay),
        metadata,
    }))
}

/// A node's word for a write that its log has neither taken nor refused.
fn says_unknown(reason: Option<Reason>, metadata: &BTreeMap<String, String>) -> bool {
    reason == Some(Reason::LogUnavailable)
        && metadata.get("outcome").is_some_and(|outcome| outcome == "unknown")
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    const WRITE: Effect = Effect::Write { only_once: false };

    fn refusal(reason: &str, code: Code) -> Status {
        let mut details = ErrorDetails::new();
        details
            .set_error_info(reason, "stateside.dev", [("owner".to_owned(), "b".to_owned())])
            .set_retry_info(Some(Duration::from_millis(20)));
        Status::with_error_details(code, "why; what to do", details)
    }

    #[test]
    fn a_refusal_keeps_reason_delay_and_metadata() {
        let status = refusal("BAD_NODE", Code::FailedPrecondition);
        let Error::Refused(refused) = from_status(&status, &"n:1".into(), WRITE) else {
            panic!("not a refusal");
        };
        assert_eq!(refused.reason, Some(Reason::BadNode));
        assert_eq!(refused.retry_after, Some(Duration::from_millis(20)));
        assert_eq!(refused.metadata["owner"], "b");
        assert_eq!(refused.to_string(), "BAD_NODE: why; what to do");
    }

    #[test]
    fn a_reason_of_a_later_release_is_kept_by_name() {
        let status = refusal("FROM_THE_FUTURE", Code::Aborted);
        let Error::Refused(refused) = from_status(&status, &"n:1".into(), WRITE) else {
            panic!("not a refusal");
        };
        assert_eq!((refused.reason, refused.reason_name.as_str()), (None, "FROM_THE_FUTURE"));
        assert_eq!(refused.code, Code::Aborted);
    }

    #[test]
    fn a_deadline_that_passed_on_the_node_leaves_a_write_unknown_and_a_read_refused() {
        let status = refusal("DEADLINE_EXCEEDED", Code::DeadlineExceeded);
        let address: Arc<str> = "n:1".into();
        assert!(matches!(from_status(&status, &address, WRITE), Error::OutcomeUnknown { .. }));
        assert!(matches!(from_status(&status, &address, Effect::Read), Error::Refused(_)));
    }

    #[test]
    fn a_log_that_does_not_answer_leaves_a_write_unknown_and_one_that_refuses_does_not() {
        let address: Arc<str> = "n:1".into();
        let refusal = |outcome: &str| {
            let mut details = ErrorDetails::new();
            details.set_error_info(
                "LOG_UNAVAILABLE",
                "stateside.dev",
                [("outcome".to_owned(), outcome.to_owned())],
            );
            Status::with_error_details(Code::Unavailable, "why", details)
        };
        let unknown = refusal("unknown");
        assert!(matches!(from_status(&unknown, &address, WRITE), Error::OutcomeUnknown { .. }));
        assert!(matches!(from_status(&unknown, &address, Effect::Read), Error::Refused(_)));
        let known = refusal("nothing written");
        assert!(matches!(from_status(&known, &address, WRITE), Error::Refused(_)));
    }

    #[test]
    fn in_doubt_the_outcome_of_a_write_is_unknown() {
        let address: Arc<str> = "n:1".into();
        let reset = Status::from_error(Box::new(std::io::Error::other("connection reset")));
        assert!(matches!(from_status(&reset, &address, WRITE), Error::OutcomeUnknown { .. }));
        assert!(matches!(
            from_status(&reset, &address, Effect::Read),
            Error::ConnectionLost { .. }
        ));
        let bare = Status::unknown("");
        assert!(matches!(from_status(&bare, &address, WRITE), Error::OutcomeUnknown { .. }));
        assert!(matches!(from_status(&bare, &address, Effect::Read), Error::Protocol { .. }));
    }

    #[test]
    fn an_entry_error_says_the_same_as_a_status() {
        let entry = v1::EntryError {
            code: Code::ResourceExhausted as i32,
            reason: "OVERLOADED".into(),
            message: "m".into(),
            retry_after_ms: 20,
            metadata: [("owner".to_owned(), "b".to_owned())].into(),
        };
        let Error::Refused(refused) = Error::from(entry) else { panic!("not a refusal") };
        assert_eq!(refused.reason, Some(Reason::Overloaded));
        assert_eq!(refused.retry_after, Some(Duration::from_millis(20)));
        assert_eq!(refused.code, Code::ResourceExhausted);
    }
}

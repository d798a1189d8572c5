//! Redis's protocol, as far as one command needs it: answers come in order and are all the same.

use crate::Session;

/// A connection that sends one command.
pub(crate) struct Resp {
    command: Vec<u8>,
    /// The first answer, once it is whole; all others must be the same.
    expected: Option<Vec<u8>>,
    /// Not taken yet.
    pending: Vec<u8>,
    answered: u64,
}

impl Resp {
    pub(crate) fn new(command: &[u8]) -> Self {
        Self { command: command.to_vec(), expected: None, pending: Vec::new(), answered: 0 }
    }
}

impl Session for Resp {
    fn hello(&mut self, _: &mut Vec<u8>) {}

    fn request(&mut self, out: &mut Vec<u8>) -> bool {
        out.extend_from_slice(&self.command);
        true
    }

    fn receive(
        &mut self,
        bytes: &[u8],
        _: &mut Vec<u8>,
        done: &mut dyn FnMut(u64),
    ) -> Result<(), String> {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        while let Some(length) =
            self.expected.as_ref().map(Vec::len).or_else(|| length(&self.pending))
        {
            let Some(answer) = self.pending.get(at..at + length) else { break };
            let expected = self.expected.get_or_insert_with(|| answer.to_vec());
            if answer != expected || answer.starts_with(b"-") || answer.starts_with(b"$-1") {
                return Err(format!("the answer is {:?}", String::from_utf8_lossy(answer)));
            }
            at += length;
            done(self.answered);
            self.answered += 1;
        }
        self.pending.drain(..at);
        Ok(())
    }
}

/// Of the answer at the front, as soon as its first line is there.
fn length(bytes: &[u8]) -> Option<usize> {
    let line = bytes.windows(2).position(|end| end == b"\r\n")? + 2;
    let text = std::str::from_utf8(&bytes[..line - 2]).ok()?;
    match text.strip_prefix('$') {
        Some(digits) => digits.parse::<usize>().ok().map(|value| line + value + 2).or(Some(line)),
        None => Some(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answers(parts: &[&[u8]]) -> Result<Vec<u64>, String> {
        let (mut session, mut calls) = (Resp::new(b"PING\r\n"), Vec::new());
        for part in parts {
            session.receive(part, &mut Vec::new(), &mut |call| calls.push(call))?;
        }
        Ok(calls)
    }

    #[test]
    fn answers_are_told_apart_however_they_are_cut() {
        assert_eq!(answers(&[b"$3\r\nabc\r\n$3\r\nab", b"c\r", b"\n"]).unwrap(), [0, 1]);
        assert_eq!(answers(&[b"+O", b"K\r\n+OK\r\n"]).unwrap(), [0, 1]);
        assert!(answers(&[b"$-1\r\n"]).is_err() && answers(&[b"-ERR\r\n"]).is_err());
        assert!(answers(&[b"+OK\r\n+NO\r\n"]).is_err());
    }
}

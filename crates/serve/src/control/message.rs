//! What frames say: requests are [`Command`]s for an image, answers are signs of life, progress, a
//! [`Reply`], or an error that keeps its kind.

use marcot::{Error, ErrorKind, Result};
use serde::de::IntoDeserializer;
use serde::{Deserialize, Deserializer, Serialize};

use super::command::{Command, Reply};
use super::frame::{Frame, JSON_BYTES_MAX};

/// What a client sends.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub struct Request {
    /// The image that it is for: pool and image, by number. Where an owner has another one open, the
    /// client was led to the wrong place.
    #[serde(default)]
    pub image: String,
    /// What to do.
    #[serde(flatten)]
    pub command: Command,
}

/// As it is written, without copying the command.
#[derive(Serialize)]
struct RequestRef<'a> {
    image: &'a str,
    #[serde(flatten)]
    command: &'a Command,
}

/// What an owner sends. After progress more follows; a reply or an error ends the exchange.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Answer {
    /// The command is being carried out. Before this it has not been, and will not be once the
    /// connection is lost, so that it can be given to the next owner.
    Begun,
    /// The owner is busy, with this command or with another one before it.
    Alive,
    /// How far the command is.
    Progress {
        /// Units done.
        done: u64,
        /// Units in all.
        total: u64,
    },
    /// The command succeeded.
    Reply {
        /// With what.
        reply: Reply,
    },
    /// The command succeeded; the reply's JSON is too long for its place and is the payload.
    LongReply,
    /// The command failed.
    Error {
        /// The kind, by name.
        #[serde(deserialize_with = "kind_or_io")]
        kind: ErrorKind,
        /// The sentence.
        message: String,
    },
}

/// Appends the frame of a request for `image` to `out`.
///
/// # Errors
/// `Invalid` if it is too long.
pub fn encode_command(image: &str, command: &Command, out: &mut Vec<u8>) -> Result<()> {
    let payload = if let Command::Write { data, .. } = command { data.as_slice() } else { &[] };
    Frame { json: &json(&RequestRef { image, command })?, payload }.encode(out)
}

/// Reads a request.
///
/// # Errors
/// `Invalid` if it is not one.
pub fn decode_command(frame: &Frame<'_>) -> Result<Request> {
    let mut request: Request = serde_json::from_slice(frame.json).map_err(malformed)?;
    if let Command::Write { data, .. } = &mut request.command {
        *data = frame.payload.to_vec();
    }
    Ok(request)
}

/// Appends an answer's frame to `out`.
///
/// # Errors
/// `Invalid` if it is too long.
pub fn encode_answer(answer: &Answer, out: &mut Vec<u8>) -> Result<()> {
    let payload = match answer {
        Answer::Reply { reply: Reply::Data { data } } => data.as_slice(),
        _ => &[],
    };
    let text = json(answer)?;
    if let Answer::Reply { reply } = answer
        && text.len() > JSON_BYTES_MAX
    {
        return Frame { json: &json(&Answer::LongReply)?, payload: &json(reply)? }.encode(out);
    }
    Frame { json: &text, payload }.encode(out)
}

/// Reads an answer.
///
/// # Errors
/// `Invalid` if it is not one.
pub fn decode_answer(frame: &Frame<'_>) -> Result<Answer> {
    Ok(match serde_json::from_slice(frame.json).map_err(malformed)? {
        Answer::Reply { reply: Reply::Data { .. } } => {
            Answer::Reply { reply: Reply::Data { data: frame.payload.to_vec() } }
        }
        Answer::LongReply => {
            Answer::Reply { reply: serde_json::from_slice(frame.payload).map_err(malformed)? }
        }
        answer => answer,
    })
}

fn json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value)
        .map_err(|e| Error::new(ErrorKind::Invalid, format!("cannot express a message: {e}")))
}

#[expect(clippy::needless_pass_by_value, reason = "the shape map_err asks for")]
fn malformed(error: serde_json::Error) -> Error {
    Error::new(ErrorKind::Invalid, format!("a malformed message on the control socket: {error}"))
}

impl From<&Error> for Answer {
    fn from(error: &Error) -> Self {
        // A sentence is short; one that is not must not make the frame too long.
        let message = error.sentence().to_string().chars().take(JSON_BYTES_MAX / 16).collect();
        Self::Error { kind: error.kind(), message }
    }
}

/// Reads a kind by its name; a name from a newer version is `Io`.
///
/// # Errors
/// Where there is no name at all.
pub fn kind_or_io<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<ErrorKind, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known: std::result::Result<_, serde::de::value::Error> =
        ErrorKind::deserialize(name.into_deserializer());
    Ok(known.unwrap_or(ErrorKind::Io))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::ExtentRow;
    use crate::control::frame::{Decoded, decode};

    fn through_the_wire(answer: &Answer) -> Answer {
        let mut bytes = Vec::new();
        encode_answer(answer, &mut bytes).unwrap();
        let Decoded::Complete(frame) = decode(&bytes).unwrap() else { panic!() };
        decode_answer(&frame).unwrap()
    }

    #[test]
    fn every_kind_survives_the_wire() {
        for kind in ErrorKind::ALL {
            let answer = through_the_wire(&Answer::from(&Error::new(*kind, "why")));
            let Answer::Error { kind: got, message } = answer else { panic!() };
            assert_eq!((got, message.as_str()), (*kind, "why"));
        }
        let json = br#"{"answer":"error","kind":"from_the_future","message":"why"}"#;
        let answer = decode_answer(&Frame { json, payload: b"" }).unwrap();
        assert!(matches!(answer, Answer::Error { kind: ErrorKind::Io, .. }), "{answer:?}");
    }

    #[test]
    fn written_and_read_bytes_travel_beside_the_json() {
        let command = Command::Write { offset: 9, data: vec![1, 2, 3] };
        let mut bytes = Vec::new();
        encode_command("pool/image", &command, &mut bytes).unwrap();
        let Decoded::Complete(frame) = decode(&bytes).unwrap() else { panic!() };
        let image = "pool/image".to_owned();
        assert_eq!(decode_command(&frame).unwrap(), Request { image, command });
        let reply = Reply::Data { data: vec![4; 100] };
        let Answer::Reply { reply: got } =
            through_the_wire(&Answer::Reply { reply: reply.clone() })
        else {
            panic!()
        };
        assert_eq!(got, reply);
    }

    #[test]
    fn a_long_reply_travels_as_payload() {
        let extents =
            (0..50_000).map(|i| ExtentRow { offset: i << 20, length: 4096, data: true }).collect();
        let reply = Reply::Diff { extents };
        let Answer::Reply { reply: got } =
            through_the_wire(&Answer::Reply { reply: reply.clone() })
        else {
            panic!()
        };
        assert_eq!(got, reply);
    }
}

//! What comes over an owner's control socket, in both directions. An input is a frame, or the JSON
//! of one.

use marcot_serve::control::frame::{Decoded, Frame, decode};
use marcot_serve::control::message::{
    decode_answer, decode_command, encode_answer, encode_command,
};

fn each_frame(data: &[u8], look: impl Fn(&Frame<'_>)) {
    if let Ok(Decoded::Complete(frame)) = decode(data) {
        assert!(frame.bytes() <= data.len());
        let mut again = Vec::new();
        assert!(frame.encode(&mut again).is_ok());
        assert!(matches!(decode(&again), Ok(Decoded::Complete(same)) if same == frame));
        look(&frame);
    }
    look(&Frame { json: data, payload: b"payload" });
}

pub fn command(data: &[u8]) {
    each_frame(data, |frame| {
        let Ok(request) = decode_command(frame) else { return };
        let mut again = Vec::new();
        if encode_command(&request.image, &request.command, &mut again).is_err() {
            return;
        }
        let Ok(Decoded::Complete(frame)) = decode(&again) else { panic!("no frame") };
        assert!(decode_command(&frame).is_ok_and(|same| same == request));
    });
}

pub fn answer(data: &[u8]) {
    each_frame(data, |frame| {
        let Ok(answer) = decode_answer(frame) else { return };
        let mut once = Vec::new();
        if encode_answer(&answer, &mut once).is_err() {
            return;
        }
        let Ok(Decoded::Complete(frame)) = decode(&once) else { panic!("no frame") };
        // LongReply without its reply is told by decoding, not by a value.
        let Ok(same) = decode_answer(&frame) else { return };
        let mut twice = Vec::new();
        assert!(encode_answer(&same, &mut twice).is_ok() && once == twice);
    });
}

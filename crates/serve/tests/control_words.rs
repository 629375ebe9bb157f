//! The words of the control protocol, by literal JSON: an owner and a client of different versions must
//! understand each other, so that none of these may change.

use marcot::ErrorKind;
use marcot_serve::control::frame::{Decoded, Frame, decode};
use marcot_serve::control::message::{
    Answer, Request, decode_answer, decode_command, encode_answer, encode_command,
};
use marcot_serve::control::{
    Command, ExtentRow, GroupSnapshot, GroupStep, IoCount, IoCounts, Lock, MigrationStep,
    QuiesceMode, Reply, UsageRow, Watcher,
};

const GROUP: GroupSnapshot = GroupSnapshot { pool: 1, group: 2, snapshot: 3 };

/// Every command, and what travels.
fn commands() -> Vec<(Command, &'static str)> {
    use Command as C;
    let name = || "v1".to_owned();
    vec![
        (C::Checkpoint, r#""command":"checkpoint""#),
        (C::SnapCreate { name: name() }, r#""command":"snap_create","name":"v1""#),
        (
            C::SnapCreateWith { name: name(), quiesce: QuiesceMode::Skip },
            r#""command":"snap_create_with","name":"v1","quiesce":"skip""#,
        ),
        (
            C::SnapCreateWith { name: name(), quiesce: QuiesceMode::IgnoreErrors },
            r#""command":"snap_create_with","name":"v1","quiesce":"ignore_errors""#,
        ),
        (
            C::SnapRemove { name: name(), force: true },
            r#""command":"snap_remove","name":"v1","force":true"#,
        ),
        (
            C::SnapRename { from: name(), to: "v2".to_owned() },
            r#""command":"snap_rename","from":"v1","to":"v2""#,
        ),
        (C::SnapRollback { name: name() }, r#""command":"snap_rollback","name":"v1""#),
        (C::SnapProtect { name: name() }, r#""command":"snap_protect","name":"v1""#),
        (C::SnapUnprotect { name: name() }, r#""command":"snap_unprotect","name":"v1""#),
        (C::MarkShared { name: name() }, r#""command":"mark_shared","name":"v1""#),
        (
            C::Resize { size_bytes: 4096, allow_shrink: false },
            r#""command":"resize","size_bytes":4096,"allow_shrink":false"#,
        ),
        (C::Flatten, r#""command":"flatten""#),
        (C::FlattenPart, r#""command":"flatten_part""#),
        (
            C::MetaSet { key: "k".to_owned(), value: "v".to_owned() },
            r#""command":"meta_set","key":"k","value":"v""#,
        ),
        (
            C::FeaturesChange { names: vec!["fast-diff".to_owned()], enable: true },
            r#""command":"features_change","names":["fast-diff"],"enable":true"#,
        ),
        (C::SnapLimit { limit: Some(3) }, r#""command":"snap_limit","limit":3"#),
        (C::SnapLimit { limit: None }, r#""command":"snap_limit","limit":null"#),
        (
            C::LockAdd {
                lock: Lock {
                    client: 7,
                    cookie: "c".to_owned(),
                    address: "a".to_owned(),
                    tag: Some("t".to_owned()),
                },
            },
            r#""command":"lock_add","lock":{"client":7,"cookie":"c","address":"a","tag":"t"}"#,
        ),
        (
            C::LockRemove { client: 7, cookie: "c".to_owned() },
            r#""command":"lock_remove","client":7,"cookie":"c""#,
        ),
        (C::Tidy, r#""command":"tidy""#),
        (C::Usage, r#""command":"usage""#),
        (
            C::Diff { from_snap: None, to_snap: Some(name()), offset: 1, length: 2 },
            r#""command":"diff","from_snap":null,"to_snap":"v1","offset":1,"length":2"#,
        ),
        (C::Read { offset: 1, length: 2 }, r#""command":"read","offset":1,"length":2"#),
        (C::Write { offset: 1, data: b"bytes".to_vec() }, r#""command":"write","offset":1"#),
        (C::Discard { offset: 1, length: 2 }, r#""command":"discard","offset":1,"length":2"#),
        (C::Flush, r#""command":"flush""#),
        (C::Extents { offset: 1, length: 2 }, r#""command":"extents","offset":1,"length":2"#),
        (
            C::Sparsify { offset: 1, length: 2, piece_bytes: 4096 },
            r#""command":"sparsify","offset":1,"length":2,"piece_bytes":4096"#,
        ),
        (C::Reclaim, r#""command":"reclaim""#),
        (C::Status, r#""command":"status""#),
        (
            C::ForGroup { step: GroupStep::Quiesce { ignore_errors: true } },
            r#""command":"for_group","step":{"quiesce":{"ignore_errors":true}}"#,
        ),
        (C::ForGroup { step: GroupStep::Hold }, r#""command":"for_group","step":"hold""#),
        (C::ForGroup { step: GroupStep::Release }, r#""command":"for_group","step":"release""#),
        (
            C::ForGroup { step: GroupStep::Create(GROUP) },
            r#""command":"for_group","step":{"create":{"pool":1,"group":2,"snapshot":3}}"#,
        ),
        (
            C::ForGroup { step: GroupStep::RollBack(GROUP) },
            r#""command":"for_group","step":{"roll_back":{"pool":1,"group":2,"snapshot":3}}"#,
        ),
        (
            C::ForGroup { step: GroupStep::Remove(GROUP) },
            r#""command":"for_group","step":{"remove":{"pool":1,"group":2,"snapshot":3}}"#,
        ),
        (
            C::Migration { step: MigrationStep::CopyPart },
            r#""command":"migration","step":"copy_part""#,
        ),
        (C::Migration { step: MigrationStep::Finish }, r#""command":"migration","step":"finish""#),
        (C::Migration { step: MigrationStep::Verify }, r#""command":"migration","step":"verify""#),
        (C::Migration { step: MigrationStep::End }, r#""command":"migration","step":"end""#),
        (C::GiveWay, r#""command":"give_way""#),
    ]
}

/// Every reply, and what travels.
fn replies() -> Vec<(Reply, &'static str)> {
    let extent = ExtentRow { offset: 1, length: 2, data: true };
    let usage = UsageRow {
        snapshot: Some("v1".to_owned()),
        snapshot_id: 3,
        provisioned_bytes: 4,
        used_bytes: 5,
    };
    let reads = IoCount { requests: 1, bytes: 2, nanoseconds: 3 };
    let io = IoCounts { reads, ..IoCounts::default() };
    let watcher = Watcher { pid: 6, usage: "nbd".to_owned(), io };
    vec![
        (Reply::Done, r#"{"reply":"done"}"#),
        (Reply::Snapshot { id: 7 }, r#"{"reply":"snapshot","id":7}"#),
        (
            Reply::Usage { rows: vec![usage] },
            r#"{"reply":"usage","rows":[{"snapshot":"v1","snapshot_id":3,"provisioned_bytes":4,"used_bytes":5}]}"#,
        ),
        (
            Reply::Diff { extents: vec![extent] },
            r#"{"reply":"diff","extents":[{"offset":1,"length":2,"data":true}]}"#,
        ),
        (Reply::Data { data: b"bytes".to_vec() }, r#"{"reply":"data"}"#),
        (
            Reply::Extents { extents: vec![extent] },
            r#"{"reply":"extents","extents":[{"offset":1,"length":2,"data":true}]}"#,
        ),
        (
            Reply::Copied { left_blocks: 8, more: true, waits: false },
            r#"{"reply":"copied","left_blocks":8,"more":true}"#,
        ),
        (Reply::Reclaimed { bytes: 9 }, r#"{"reply":"reclaimed","bytes":9}"#),
        (
            Reply::Status { watchers: vec![watcher] },
            r#"{"reply":"status","watchers":[{"pid":6,"usage":"nbd","io":{"reads":{"requests":1,"bytes":2,"nanoseconds":3},"writes":{"requests":0,"bytes":0,"nanoseconds":0}}}]}"#,
        ),
    ]
}

fn frame(bytes: &[u8]) -> Frame<'_> {
    let Decoded::Complete(frame) = decode(bytes).unwrap() else { panic!("no whole frame") };
    assert_eq!(frame.bytes(), bytes.len());
    frame
}

/// The payload of what has one.
fn payload(has_data: bool) -> &'static [u8] {
    if has_data { b"bytes" } else { b"" }
}

#[test]
fn every_command_travels_in_the_same_words() {
    for (command, words) in commands() {
        let json = format!(r#"{{"image":"pool/image",{words}}}"#);
        let payload = payload(matches!(command, Command::Write { .. }));
        let mut bytes = Vec::new();
        encode_command("pool/image", &command, &mut bytes).unwrap();
        let sent = frame(&bytes);
        assert_eq!((std::str::from_utf8(sent.json).unwrap(), sent.payload), (&*json, payload));
        let received = decode_command(&Frame { json: json.as_bytes(), payload }).unwrap();
        assert_eq!(received, Request { image: "pool/image".to_owned(), command });
    }
}

#[test]
fn every_reply_travels_in_the_same_words() {
    for (reply, words) in replies() {
        let json = format!(r#"{{"answer":"reply","reply":{words}}}"#);
        let payload = payload(matches!(reply, Reply::Data { .. }));
        let mut bytes = Vec::new();
        encode_answer(&Answer::Reply { reply: reply.clone() }, &mut bytes).unwrap();
        let sent = frame(&bytes);
        assert_eq!((std::str::from_utf8(sent.json).unwrap(), sent.payload), (&*json, payload));
        let received = decode_answer(&Frame { json: json.as_bytes(), payload }).unwrap();
        let Answer::Reply { reply: got } = received else { panic!("{json}") };
        assert_eq!(got, reply);
    }
}

#[test]
fn every_other_answer_travels_in_the_same_words() {
    let error = Answer::Error { kind: ErrorKind::HasChildren, message: "why".to_owned() };
    for (answer, json) in [
        (Answer::Begun, r#"{"answer":"begun"}"#),
        (Answer::Alive, r#"{"answer":"alive"}"#),
        (Answer::Progress { done: 1, total: 2 }, r#"{"answer":"progress","done":1,"total":2}"#),
        (Answer::LongReply, r#"{"answer":"long_reply"}"#),
        (error, r#"{"answer":"error","kind":"has_children","message":"why"}"#),
    ] {
        let mut bytes = Vec::new();
        encode_answer(&answer, &mut bytes).unwrap();
        assert_eq!(std::str::from_utf8(frame(&bytes).json).unwrap(), json);
    }
}

#[test]
fn every_kind_of_error_travels_by_the_same_name() {
    let names = [
        "not_found",
        "exists",
        "busy",
        "owned",
        "has_snapshots",
        "has_children",
        "protected",
        "not_protected",
        "no_parent",
        "invalid",
        "name_too_long",
        "out_of_range",
        "read_only",
        "permission_denied",
        "no_space",
        "too_many",
        "corrupt",
        "newer_format",
        "poisoned",
        "fenced",
        "not_empty",
        "in_group",
        "unsupported",
        "interrupted",
        "exhausted",
        "unreachable",
        "io",
    ];
    assert_eq!(ErrorKind::ALL.len(), names.len());
    for (kind, name) in ErrorKind::ALL.iter().zip(names) {
        let json = format!(r#"{{"answer":"error","kind":"{name}","message":"why"}}"#);
        let mut bytes = Vec::new();
        let answer = Answer::Error { kind: *kind, message: "why".to_owned() };
        encode_answer(&answer, &mut bytes).unwrap();
        assert_eq!(std::str::from_utf8(frame(&bytes).json).unwrap(), json);
        let received = decode_answer(&Frame { json: json.as_bytes(), payload: b"" }).unwrap();
        assert!(matches!(received, Answer::Error { kind: got, .. } if got == *kind), "{name}");
    }
}

//! The protocol: round trips, limits, and the page that describes it.

use lcow_protocol::{
    Call, DiskId, ErrorKind, ExitStatus, FrameDecoder, FrameError, HEADER_LEN, HELLO_LEN,
    HandshakeError, Hello, MAX_FRAME, MAX_FREEZE_MS, MAX_STREAMS, NONCE_LEN, RemoteError, Reply,
    Request, RequestId, Response, Role, VERSION, chunk, encode_frame, frame_len,
};
use proptest::prelude::*;

const PAGE: &str = include_str!("../../../docs/format/uvm-protocol.md");

#[test]
fn the_page_has_the_constants_of_the_code() {
    let constants = [
        ("VERSION", usize::from(VERSION)),
        ("HELLO_LEN", HELLO_LEN),
        ("NONCE_LEN", NONCE_LEN),
        ("HEADER_LEN", HEADER_LEN),
        ("MAX_FRAME", MAX_FRAME),
        ("CHUNK_HEADER", chunk::CHUNK_HEADER),
        ("MAX_CHUNK", chunk::MAX_CHUNK),
        ("MAX_STREAMS", MAX_STREAMS),
        ("MAX_FREEZE_MS", MAX_FREEZE_MS as usize),
    ];
    for (name, value) in constants {
        assert!(
            PAGE.contains(&format!("| `{name}` | {value} |")),
            "{name} = {value} is not on the page"
        );
    }
}

#[test]
fn the_page_lists_the_calls_in_the_order_of_their_numbers() {
    let calls: Vec<&str> = PAGE
        .split("\n## Calls")
        .nth(1)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix("| ")?.split(' ').next())
        .skip(1)
        .take_while(|name| *name != "Signal")
        .collect();
    let samples = [
        Call::Info,
        Call::MountDisks(vec![]),
        Call::UnmountDisks(vec![]),
        Call::RemoveUnion(lcow_protocol::UnionId(0)),
        Call::Sync,
        Call::Trim(DiskId(0)),
        Call::KernelLog,
        Call::Statistics,
        Call::SetClock {
            seconds: 0,
            nanoseconds: 0,
        },
        Call::FollowLog,
        Call::PowerOff,
        Call::Freeze {
            disk: DiskId(0),
            limit_ms: 1,
        },
    ];
    for call in samples {
        let debug = format!("{call:?}");
        let name = debug.split(['(', ' ', '{']).next().unwrap();
        // The body's third byte is the call's number: the id and the deadline before it are one byte each.
        let frame = encode_frame(&Request {
            id: RequestId(0),
            deadline_ms: 0,
            call,
        })
        .unwrap();
        let number = usize::from(frame[HEADER_LEN + 2]);
        assert_eq!(calls.get(number), Some(&name), "call {number}");
    }
    assert_eq!(calls.len(), 15);
}

#[test]
fn a_hello_is_taken_only_as_it_was_sent() {
    let hello = Hello {
        role: Role::Guest,
        nonce: [7; NONCE_LEN],
    };
    let good = hello.encode();
    assert_eq!(Hello::accept(&good, &[7; NONCE_LEN]), Ok(hello));
    assert_eq!(
        Hello::accept(&good, &[8; NONCE_LEN]),
        Err(HandshakeError::Nonce)
    );
    assert!(matches!(
        Hello::decode(Role::Host, &good),
        Err(HandshakeError::Magic { .. })
    ));
    for at in 0..16 {
        let mut bad = good;
        bad[at] ^= 0x40;
        assert!(Hello::accept(&bad, &[7; NONCE_LEN]).is_err(), "byte {at}");
    }
}

#[test]
fn lengths_over_the_limits_are_refused_before_the_bytes_come() {
    let over = u32::try_from(MAX_FRAME + 1).unwrap().to_le_bytes();
    assert!(matches!(frame_len(over), Err(FrameError::TooLong { .. })));
    let mut decoder = FrameDecoder::new();
    decoder.push(&over);
    assert!(decoder.next::<Request>().is_err());
    let text = Response {
        id: RequestId(1),
        result: Ok(Reply::Text(vec![0; MAX_FRAME])),
    };
    assert!(matches!(
        encode_frame(&text),
        Err(FrameError::TooLong { .. })
    ));
    assert!(chunk::len(u32::MAX.to_le_bytes()).is_err());
    assert!(chunk::header(chunk::MAX_CHUNK + 1).is_err());
    assert_eq!(
        chunk::header(chunk::MAX_CHUNK).map(chunk::len),
        Ok(Ok(chunk::MAX_CHUNK))
    );
}

#[test]
fn errors_read_as_what_failed_on_what_and_why() {
    let error = RemoteError::system("mount", 2)
        .at("/dev/sdb")
        .because("no disk");
    assert_eq!(
        error.to_string(),
        "mount /dev/sdb: No such file or directory (os error 2): no disk"
    );
    for (kind, code) in [
        (ErrorKind::CommandNotFound, Some(127)),
        (ErrorKind::CommandNotExecutable, Some(126)),
        (ErrorKind::Busy, None),
    ] {
        assert_eq!(RemoteError::new(kind, "exec").shell_exit_code(), code);
    }
    assert_eq!(
        (
            ExitStatus::Code(3).shell_code(),
            ExitStatus::Signal(9).shell_code()
        ),
        (3, 137)
    );
}

proptest! {
    #[test]
    fn frames_come_out_as_they_went_in_however_they_are_cut(
        ids in proptest::collection::vec((any::<u32>(), any::<i32>(), ".{0,40}"), 1..8),
        cut in 1..50_usize,
    ) {
        let messages: Vec<Response> = ids
            .into_iter()
            .map(|(id, errno, text)| Response {
                id: RequestId(id),
                result: Err(RemoteError::system(text.clone(), errno).at(text)),
            })
            .collect();
        let bytes: Vec<u8> = messages.iter().flat_map(|message| encode_frame(message).unwrap()).collect();
        let mut decoder = FrameDecoder::new();
        let mut got = Vec::new();
        for piece in bytes.chunks(cut) {
            decoder.push(piece);
            while let Some(message) = decoder.next::<Response>().unwrap() {
                got.push(message);
            }
        }
        prop_assert_eq!(got, messages);
        prop_assert_eq!(decoder.pending(), 0);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut decoder = FrameDecoder::new();
        decoder.push(&bytes);
        while let Ok(Some(_)) = decoder.next::<Request>() {}
    }
}

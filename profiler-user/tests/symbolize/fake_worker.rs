//! Workers that are not: what a file could make of the real one.

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

/// Plays one. Each but the first two becomes ready before it misbehaves.
pub(crate) fn run(role: &str) {
    let socket = std::io::stdin().as_fd().try_clone_to_owned().unwrap();
    let mut socket = UnixStream::from(socket);
    match role {
        "exits" => return,
        "never-ready" => forever(),
        _ => {}
    }
    skip_request(&mut socket);
    send(&mut socket, br#""Ready""#);
    skip_request(&mut socket);
    match role {
        "hangs" => forever(),
        "leaves" => return,
        "garbage" => socket.write_all(&[0xa5; 4096]).unwrap(),
        "long" => socket.write_all(&[0xff; 4096]).unwrap(),
        "not-json" => send(&mut socket, b"\xff{[[[["),
        "other-answer" => send(&mut socket, br#""Ready""#),
        "many-segments" => {
            let segment = r#"{"offset":0,"len":1,"address":0}"#;
            let segments = [segment; 1000].join(",");
            let rest = r#""has_symbols":true,"has_lines":true,"debug_link":null"#;
            send(
                &mut socket,
                format!(r#"{{"Opened":{{"segments":[{segments}],{rest}}}}}"#).as_bytes(),
            );
        }
        "trickles" => {
            socket.write_all(&[0, 0, 1, 0]).unwrap();
            while socket.write_all(b" ").is_ok() {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
        }
        wrong_names => {
            let rest = r#""segments":[],"has_symbols":true,"has_lines":true,"debug_link":null"#;
            send(&mut socket, format!(r#"{{"Opened":{{{rest}}}}}"#).as_bytes());
            skip_request(&mut socket);
            let (strings, locations) = match wrong_names {
                "no-locations" => (r#""f""#, ""),
                "no-frames" => (r#""f""#, r#"{"Ok":[]}"#),
                "no-name" => (r#""""#, r#"{"Ok":[{"function":0,"file":null,"line":0}]}"#),
                "no-string" => (r#""f""#, r#"{"Ok":[{"function":7,"file":null,"line":0}]}"#),
                "terminal" => {
                    (r#""\u001b[2Jf""#, r#"{"Ok":[{"function":0,"file":null,"line":0}]}"#)
                }
                role => panic!("no such role: {role}"),
            };
            let named = format!(
                r#"{{"Named":{{"strings":[{strings}],"locations":[{locations}],"memory_bytes":0}}}}"#
            );
            send(&mut socket, named.as_bytes());
        }
    }
    // Not to end before the client has read it.
    drop(socket.read(&mut [0; 1]));
    forever();
}

fn skip_request(socket: &mut UnixStream) {
    let mut len = [0; 4];
    socket.read_exact(&mut len).unwrap();
    let mut request = vec![0; usize::try_from(u32::from_le_bytes(len)).unwrap()];
    socket.read_exact(&mut request).unwrap();
}

fn send(socket: &mut UnixStream, answer: &[u8]) {
    let len = u32::try_from(answer.len()).unwrap();
    socket.write_all(&len.to_le_bytes()).unwrap();
    socket.write_all(answer).unwrap();
}

/// Only a signal ends it.
fn forever() -> ! {
    loop {
        std::thread::park();
    }
}

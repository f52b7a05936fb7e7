//! A server that takes every profile and forgets it: what it costs is not the agent's.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

const STORED: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: application/proto\r\n\
    Content-Length: 0\r\nConnection: close\r\n\r\n";
const PATIENCE: Duration = Duration::from_secs(10);

/// Starts it, for as long as this program runs, and tells its URL.
pub(super) fn start() -> Result<String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no port for a server")?;
    let url = format!("http://{}", listener.local_addr().context("a port without a number")?);
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            std::thread::spawn(move || serve(stream));
        }
    });
    Ok(url)
}

/// What goes wrong here is a profile that the agent counts as not exported.
fn serve(mut stream: TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut request = Vec::new();
    let mut chunk = [0; 16 << 10];
    while !is_whole(&request) {
        let bytes = stream.read(&mut chunk).ok().filter(|bytes| *bytes > 0)?;
        request.extend_from_slice(chunk.get(..bytes)?);
    }
    stream.write_all(STORED).ok()
}

fn is_whole(request: &[u8]) -> bool {
    let Some(end) = request.windows(4).position(|window| window == b"\r\n\r\n") else {
        return false;
    };
    let (head, body) = request.split_at(end + 4);
    let head = String::from_utf8_lossy(head).to_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length
        .is_none_or(|length| length.trim().parse().is_ok_and(|length: usize| body.len() >= length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_whole_with_its_body() {
        assert!(!is_whole(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n"));
        assert!(!is_whole(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\na"));
        assert!(is_whole(b"POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"));
        assert!(is_whole(b"GET / HTTP/1.1\r\n\r\n"));
    }
}

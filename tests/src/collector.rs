//! What plays an OTLP collector: it keeps what is sent.

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use prost::Message as _;

use crate::relay::{Request, read_request};

/// Everything that came so far.
#[derive(Clone, Debug, Default)]
pub struct Collected {
    /// Requests to `/v1/traces`.
    pub traces: Vec<ExportTraceServiceRequest>,
    /// Requests to `/v1/metrics`.
    pub metrics: Vec<ExportMetricsServiceRequest>,
    /// What was neither, by its first line.
    pub others: Vec<String>,
}

/// The collector, until it is dropped.
#[derive(Debug)]
pub struct Collector {
    address: SocketAddr,
    collected: Arc<Mutex<Collected>>,
    ending: Arc<AtomicBool>,
}

impl Collector {
    /// Starts it at a port of its own.
    ///
    /// # Errors
    ///
    /// There is no port.
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (collected, ending) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let (to, flag) = (Arc::clone(&collected), Arc::clone(&ending));
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                if flag.load(Ordering::Acquire) {
                    return;
                }
                if let Ok(Some(request)) = read_request(&mut stream) {
                    keep(&to, &request);
                    let answer = "HTTP/1.1 200 OK\r\nContent-Type: application/x-protobuf\r\n\
                        Content-Length: 0\r\nConnection: close\r\n\r\n";
                    // Whoever asked may have gone.
                    drop(stream.write_all(answer.as_bytes()));
                }
            }
        });
        Ok(Self { address, collected, ending })
    }

    /// Where it is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What came so far.
    #[must_use]
    pub fn collected(&self) -> Collected {
        self.collected.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Release);
        drop(std::net::TcpStream::connect(self.address));
    }
}

fn keep(to: &Mutex<Collected>, Request { line, body }: &Request) {
    let mut to = to.lock().unwrap_or_else(PoisonError::into_inner);
    if line.starts_with("POST /v1/traces ")
        && let Ok(request) = ExportTraceServiceRequest::decode(&**body)
    {
        to.traces.push(request);
    } else if line.starts_with("POST /v1/metrics ")
        && let Ok(request) = ExportMetricsServiceRequest::decode(&**body)
    {
        to.metrics.push(request);
    } else {
        to.others.push(line.clone());
    }
}

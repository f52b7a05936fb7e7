//! How to start a server of either storage so that it stays on loopback, is ready soon, and tells
//! nobody about it.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use crate::ports::free_ports;

/// Which storage a server has, and so which flags it knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    V1,
    V2,
}

/// The ports of one server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ports {
    http: u16,
    grpc: u16,
    gossip: u16,
    raft: u16,
}

impl Ports {
    /// Ports that nobody has at this moment.
    pub(super) fn free() -> Result<Self> {
        let [http, grpc, gossip, raft] = free_ports()?;
        Ok(Self { http, grpc, gossip, raft })
    }

    pub(super) fn http(self) -> u16 {
        self.http
    }
}

impl Storage {
    /// Asks a server's binary.
    pub(super) fn of(binary: &Path) -> Result<Self> {
        let help = Command::new(binary)
            .arg("-help-all")
            .output()
            .with_context(|| format!("cannot run {}", binary.display()))?;
        let text = [help.stdout, help.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        let known = |flag: &str| text.lines().any(|line| line.trim_start().starts_with(flag));
        ensure!(
            known("-server.http-listen-port"),
            "{} is not a Pyroscope server: its help has no -server.http-listen-port",
            binary.display()
        );
        Ok(if known("-architecture.storage") { Self::V2 } else { Self::V1 })
    }

    pub(super) fn is_v2(self) -> bool {
        self == Self::V2
    }

    /// The page that shows whether what stores profiles has joined.
    pub(super) fn ring_path(self) -> &'static str {
        match self {
            Self::V1 => "/ring",
            Self::V2 => "/ring-segment-writer",
        }
    }

    pub(super) fn arguments(self, ports: Ports, data: &Path) -> Vec<String> {
        let Ports { http, grpc, gossip, .. } = ports;
        let data = data.display();
        let mut arguments = vec![
            "-target=all".to_owned(),
            "-config.show_banner=false".to_owned(),
            "-server.http-listen-address=127.0.0.1".to_owned(),
            format!("-server.http-listen-port={http}"),
            "-server.grpc-listen-address=127.0.0.1".to_owned(),
            format!("-server.grpc-listen-port={grpc}"),
            "-storage.backend=filesystem".to_owned(),
            format!("-storage.filesystem.dir={data}/shared"),
            "-memberlist.bind-addr=127.0.0.1".to_owned(),
            format!("-memberlist.bind-port={gossip}"),
            "-memberlist.advertise-addr=127.0.0.1".to_owned(),
            format!("-memberlist.advertise-port={gossip}"),
            "-distributor.ring.instance-addr=127.0.0.1".to_owned(),
            "-overrides-exporter.ring.instance-addr=127.0.0.1".to_owned(),
            "-query-frontend.instance-addr=127.0.0.1".to_owned(),
            "-self-profiling.disable-push=true".to_owned(),
            "-usage-stats.enabled=false".to_owned(),
            "-tracing.enabled=false".to_owned(),
        ];
        arguments.extend(match self {
            Self::V1 => vec![
                format!("-pyroscopedb.data-path={data}/db"),
                "-ingester.lifecycler.addr=127.0.0.1".to_owned(),
                "-ingester.min-ready-duration=0".to_owned(),
                "-query-scheduler.ring.instance-addr=127.0.0.1".to_owned(),
                "-compactor.ring.instance-addr=127.0.0.1".to_owned(),
                "-store-gateway.sharding-ring.instance-addr=127.0.0.1".to_owned(),
            ],
            Self::V2 => v2(ports, &data.to_string()),
        });
        arguments
    }
}

fn v2(ports: Ports, data: &str) -> Vec<String> {
    let Ports { grpc, raft, .. } = ports;
    vec![
        "-architecture.storage=v2".to_owned(),
        format!("-metastore.data-dir={data}/meta"),
        format!("-metastore.raft.dir={data}/raft"),
        format!("-metastore.raft.snapshots-dir={data}/snapshots"),
        format!("-metastore.raft.bind-address=127.0.0.1:{raft}"),
        format!("-metastore.raft.advertise-address=127.0.0.1:{raft}"),
        format!("-metastore.raft.server-id=127.0.0.1:{raft}"),
        format!("-metastore.address=127.0.0.1:{grpc}"),
        "-metastore.min-ready-duration=0".to_owned(),
        format!("-query-backend.address=127.0.0.1:{grpc}"),
        "-segment-writer.min-ready-duration=0".to_owned(),
        "-segment-writer.lifecycler.addr=127.0.0.1".to_owned(),
        "-segment-writer.heartbeat-period=1s".to_owned(),
    ]
}

//! Ports for servers that have to be told theirs.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, anyhow};

/// Ports of the loopback address that nobody has at this moment.
///
/// # Errors
///
/// There are not so many.
pub fn free_ports<const PORTS: usize>() -> Result<[u16; PORTS]> {
    // Held together, so that they differ.
    let listeners = (0..PORTS)
        .map(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .collect::<Result<Vec<_>, _>>()?;
    let ports = listeners
        .iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect::<Result<Vec<_>>>()?;
    <[u16; PORTS]>::try_from(ports).map_err(|ports| anyhow!("{ports:?} are not {PORTS} ports"))
}

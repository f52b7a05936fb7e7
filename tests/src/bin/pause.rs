//! Holds a pod's namespaces together, and does nothing until it is told to end: the sandbox of the
//! cluster that tests start.

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // As process 1 of a container, a signal without a handler is ignored.
        let mut end = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        end.recv().await;
        Ok(())
    })
}

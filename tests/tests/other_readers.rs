//! What span-marker publishes is what a reader expects that is not ours.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::process::Command;
    use std::time::Duration;

    use spanprof_tests::agent::start_checkout_with;
    use spanprof_tests::cargo_fixture;
    use spanprof_tests::require;
    use spanprof_tests::wait::until;
    use tempfile::TempDir;

    const TARGET: &str = env!("CARGO_TARGET_TMPDIR");
    const DEADLINE: Duration = Duration::from_secs(60);

    #[test]
    fn libdatadogs_reads_the_process_context() {
        let checkout = require!(Checkout);
        let reader = cargo_fixture::build("libdatadog-reader", &[], TARGET.as_ref()).unwrap();
        let folder = TempDir::new().unwrap();
        let out = folder.path().join("context");
        let environment = [
            ("LD_PRELOAD", reader.join("liblibdatadog_reader.so")),
            ("CONTEXT_READER_OUT", out.clone()),
        ];
        let _load = start_checkout_with(&checkout, "other-reader", 5, &environment).unwrap();
        assert!(until(DEADLINE, || out.exists()), "it finds no context");
        let said = fs::read_to_string(&out).unwrap();
        let lines: BTreeSet<&str> = said.lines().collect();
        for expected in [
            "resource service.name=other-reader",
            "attribute threadlocal.schema_version=tlsdesc_v1_dev",
        ] {
            assert!(lines.contains(expected), "{expected}: {said}");
        }
        let keys = lines.iter().find_map(|line| line.strip_prefix("keys ")).unwrap();
        let first: Vec<&str> = keys.split(',').take(3).collect();
        assert_eq!(first, ["local_root_span_id", "span_name", "local_root_span_name"]);
    }

    #[test]
    fn libdatadogs_check_passes_the_slot() {
        let checkout = require!(Checkout);
        let build = ["--bin", "slot_check"];
        let folder = cargo_fixture::build("libdatadog", &build, TARGET.as_ref()).unwrap();
        let check = |path| Command::new(folder.join("slot_check")).arg(path).output().unwrap();
        let passed = check(checkout);
        assert!(passed.status.success(), "{}", String::from_utf8_lossy(&passed.stderr));
        assert!(!check("/proc/self/exe".into()).status.success(), "it passes what has none");
    }
}

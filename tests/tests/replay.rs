//! A recorded file gives the same bytes each time, to anybody, as the recording itself gave.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::os::unix::process::CommandExt as _;
    use std::path::PathBuf;

    use spanprof_tests::require;
    use spanprof_tests::span_writer::SpanWriter;
    use spanprof_tests::spanprof::{Running, STATS, Spanprof};

    const OUTPUTS: [&str; 4] = ["pb.gz", "svg", "folded", "json"];
    /// `nobody`, on every distribution.
    const NOBODY: u32 = 65_534;

    /// A recording with spans, kernel frames and several processes, with the outputs `live.*`.
    fn recording(binary: PathBuf) -> Spanprof {
        let spanprof = Spanprof::new(binary).unwrap();
        let writer = SpanWriter::compile().unwrap();
        let mut arguments = vec!["-F", "997", "--raw", "a.raw"];
        let outputs = OUTPUTS.map(|ending| format!("live.{ending}"));
        arguments.extend(outputs.iter().flat_map(|output| ["-o", output]));
        arguments.extend([
            "--",
            "sh",
            "-c",
            r#""$0" "$@"; dd if=/dev/zero of=/dev/null bs=1M count=1000"#,
        ]);
        let command = writer.arguments("good", 300);
        arguments.extend(command.iter().map(String::as_str));
        spanprof.record(&arguments).unwrap();
        spanprof
    }

    /// The arguments of a replay to `<name>.*`.
    fn replay(name: &str) -> Vec<String> {
        let outputs = OUTPUTS.map(|ending| ["-o".to_owned(), format!("{name}.{ending}")]);
        let fixed = ["replay", "a.raw", "--stats", STATS].map(str::to_owned);
        fixed.into_iter().chain(outputs.into_iter().flatten()).collect()
    }

    #[track_caller]
    fn same(spanprof: &Spanprof, name: &str) {
        for ending in OUTPUTS {
            let [live, replayed] =
                ["live", name].map(|name| spanprof.bytes(&format!("{name}.{ending}")).unwrap());
            assert!(live.len() > 100, "{ending} holds something");
            assert!(live == replayed, "{name}.{ending} is not live.{ending}");
        }
    }

    #[test]
    fn replays_are_the_recording_byte_for_byte_and_need_no_privileges() {
        require!(Root);
        let spanprof = recording(require!(Spanprof));
        let taken = spanprof.books().unwrap().kernel("samples_taken");
        for name in ["first", "second"] {
            let arguments = replay(name);
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            spanprof.run(&arguments).unwrap().succeeded().unwrap();
            same(&spanprof, name);
            assert_eq!(spanprof.books().unwrap().kernel("samples_taken"), taken);
        }

        // Recordings are not for everyone to read: somebody else gets a copy.
        let theirs = spanprof.path("theirs");
        fs::create_dir(&theirs).unwrap();
        fs::copy(spanprof.path("a.raw"), theirs.join("a.raw")).unwrap();
        fs::set_permissions(spanprof.path(""), fs::Permissions::from_mode(0o711)).unwrap();
        fs::set_permissions(theirs.join("a.raw"), fs::Permissions::from_mode(0o644)).unwrap();
        fs::set_permissions(&theirs, fs::Permissions::from_mode(0o777)).unwrap();
        let arguments = replay("nobody");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        // The binary may be where only its owner may look.
        let binary = theirs.join("spanprof");
        fs::copy(require!(Spanprof), &binary).unwrap();
        fs::set_permissions(&binary, fs::Permissions::from_mode(0o755)).unwrap();
        let mut command = std::process::Command::new(&binary);
        command.args(&arguments).current_dir(&theirs).uid(NOBODY).gid(NOBODY);
        let finished = Running::start(&mut command).unwrap().finish().unwrap();
        finished.succeeded().unwrap();
        for ending in OUTPUTS {
            let live = spanprof.bytes(&format!("live.{ending}")).unwrap();
            assert!(live == fs::read(theirs.join(format!("nobody.{ending}"))).unwrap(), "{ending}");
        }
    }

    /// A replay that must fail, with what it complains about and nothing written.
    #[track_caller]
    fn refused(spanprof: &Spanprof, bytes: &[u8], complaint: &str) {
        fs::write(spanprof.path("a.raw"), bytes).unwrap();
        let before = spanprof.files().unwrap();
        let arguments = replay("refused");
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let finished = spanprof.run(&arguments).unwrap();
        finished.ended_with(1).unwrap();
        let last = finished.stderr.lines().last().unwrap();
        assert!(last.starts_with("spanprof: ") && last.contains(complaint), "{last}");
        assert_eq!(finished.stdout, "");
        assert_eq!(spanprof.files().unwrap(), before, "nothing is written");
    }

    #[test]
    fn a_file_that_is_cut_or_damaged_or_something_else_is_an_error_and_leaves_nothing() {
        require!(Root);
        let spanprof = recording(require!(Spanprof));
        let whole = spanprof.bytes("a.raw").unwrap();
        for part in 1..4 {
            refused(&spanprof, &whole[..whole.len() * part / 4], "cut or damaged");
        }
        // The last 8 bytes are the check sum of the whole.
        refused(&spanprof, &whole[..whole.len() - 20], "cut or damaged");
        for part in 1..4 {
            let mut damaged = whole.clone();
            let at = whole.len() * part / 4;
            for byte in &mut damaged[at..at + 16] {
                *byte ^= 0xff;
            }
            refused(&spanprof, &damaged, "recorded");
        }
        refused(&spanprof, b"", "not a file of `spanprof record --raw`");
        refused(&spanprof, &spanprof.bytes("live.pb.gz").unwrap(), "not a file of");

        fs::remove_file(spanprof.path("a.raw")).unwrap();
        let finished = spanprof.run(&["replay", "a.raw"]).unwrap();
        finished.ended_with(1).unwrap();
        assert!(finished.stderr.contains("cannot open a.raw"), "{}", finished.stderr);
    }
}

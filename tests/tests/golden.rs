//! A recorded file that is checked in gives the outputs that are checked in: a change of the
//! format, of attribution or of the outputs is seen.
//!
//! `SPANPROF_REGENERATE=1` writes all of them anew; look at the difference then.

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::{Path, PathBuf};

    use spanprof_tests::spanprof::Spanprof;
    use spanprof_tests::{recorded_file, require};

    const RAW: &str = "golden.raw";
    const OUTPUTS: [&str; 4] = ["golden.folded", "golden.json", "active.folded", "active.json"];

    fn checked_in(name: &str) -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("data").join(name)
    }

    fn regenerate() -> bool {
        std::env::var_os("SPANPROF_REGENERATE").is_some()
    }

    #[test]
    fn the_recorded_file_gives_the_outputs_that_are_checked_in() {
        let spanprof = Spanprof::new(require!(Spanprof)).unwrap();
        if regenerate() {
            fs::write(checked_in(RAW), recorded_file::file().unwrap()).unwrap();
        }
        let raw = checked_in(RAW);
        for (scope, outputs) in [("local-root", &OUTPUTS[..2]), ("active", &OUTPUTS[2..])] {
            let fixed = ["replay", raw.to_str().unwrap(), "--span-scope", scope];
            let outputs = ["--stats", "stats.json", "-o", outputs[0], "-o", outputs[1]];
            let finished = spanprof.run(&[&fixed[..], &outputs].concat()).unwrap();
            finished.succeeded().unwrap();
            assert_eq!(finished.stderr, "");
            let books = spanprof.books().unwrap();
            assert_eq!(books.samples("samples_exported"), recorded_file::SAMPLES);
        }
        for name in OUTPUTS {
            let found = spanprof.bytes(name).unwrap();
            if regenerate() {
                fs::write(checked_in(name), &found).unwrap();
            }
            let found = String::from_utf8(found).unwrap();
            let expected = fs::read_to_string(checked_in(name)).unwrap();
            assert_eq!(found, expected, "{name}; see the head of this file");
        }
    }

    #[test]
    fn the_recorded_file_is_the_one_that_is_described() {
        let checked_in = fs::read(checked_in(RAW)).unwrap();
        let described = recorded_file::chunks().unwrap();
        assert!(recorded_file::chunks_of(&checked_in).unwrap() == described);
    }
}

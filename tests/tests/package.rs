//! The Debian package: what is in it, and that its unit lets the agent do what it is for.

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;
    use std::process::{Command, Output};

    use spanprof_tests::agent::{Process, poll_until};
    use spanprof_tests::relay::{Act, Relay, STORED};
    use spanprof_tests::require;

    fn text(output: Output) -> String {
        let [out, error] =
            [output.stdout, output.stderr].map(|it| String::from_utf8_lossy(&it).into_owned());
        assert!(output.status.success(), "{out}{error}");
        out
    }

    /// The package as it would be installed, and its scripts in `DEBIAN`.
    fn unpacked(dpkg_deb: &Path, deb: &Path) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let done = Command::new(dpkg_deb).arg("-R").arg(deb).arg(folder.path()).output().unwrap();
        text(done);
        folder
    }

    /// All that a setting of the unit says, in one.
    fn setting(unit: &str, name: &str) -> Vec<String> {
        let lines = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    }

    #[test]
    fn it_has_what_a_package_has() {
        let (deb, dpkg_deb) = (require!(Deb), require!(DpkgDeb));
        let fields = text(Command::new(&dpkg_deb).arg("-f").arg(&deb).output().unwrap());
        for field in ["Package: spanprof", "Architecture: amd64", "Version: 0.1.0"] {
            assert!(fields.lines().any(|line| line == field), "{fields}");
        }
        let contents = text(Command::new(&dpkg_deb).arg("-c").arg(&deb).output().unwrap());
        assert!(contents.lines().all(|line| line.contains(" root/root ")), "{contents}");
        let root = unpacked(&dpkg_deb, &deb);
        let at = |path: &str| root.path().join(path);
        for page in ["spanprof.1", "spanprof-run.1", "spanprof-record.1", "spanprof-inspect.1"] {
            assert!(at("usr/share/man/man1").join(page).is_file(), "{page}");
        }
        let conffiles = fs::read_to_string(at("DEBIAN/conffiles")).unwrap();
        assert_eq!(conffiles, "/etc/spanprof/spanprof.yaml\n");
        for script in ["postinst", "prerm", "postrm"] {
            let path = at("DEBIAN").join(script);
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o755);
            text(Command::new("sh").arg("-n").arg(path).output().unwrap());
        }

        let program = at("usr/bin/spanprof");
        let version = text(Command::new(&program).arg("--version").output().unwrap());
        assert_eq!(version, "spanprof 0.1.0\n");
        let options = at("etc/spanprof/spanprof.yaml");
        let check = |file: &Path| {
            let mut check = Command::new(&program);
            text(
                check.args(["config", "check", "--config"]).arg(file).env_clear().output().unwrap(),
            )
        };
        check(&options);
        // What is only an example there can be, too.
        let examples = fs::read_to_string(&options).unwrap();
        let examples = examples.lines().map(|line| match line.strip_prefix('#') {
            Some(example) if !example.is_empty() && !example.starts_with(' ') => example,
            Some(example) if example.starts_with("  -") || example.starts_with("    repl") => {
                example
            }
            _ => line,
        });
        let examples = examples.collect::<Vec<_>>().join("\n");
        assert!(
            examples.contains("\nkeep:") && examples.contains("\n  - target_label"),
            "{examples}"
        );
        let (all, token) = (at("all.yaml"), at("token"));
        fs::write(&token, "secret").unwrap();
        fs::write(&all, examples.replace("/etc/spanprof/token", token.to_str().unwrap())).unwrap();
        check(&all);

        let completion = at("usr/share/bash-completion/completions/spanprof");
        let script = ". \"$1\" && COMP_WORDS=(spanprof rec) COMP_CWORD=1 && \
            _spanprof spanprof rec spanprof && printf '%s\\n' \"${COMPREPLY[@]}\"";
        let bash = Command::new("bash").args(["-c", script, "bash"]).arg(completion).output();
        assert_eq!(text(bash.unwrap()), "record\n");
    }

    #[test]
    fn systemd_knows_every_setting_of_the_unit() {
        let (deb, dpkg_deb) = (require!(Deb), require!(DpkgDeb));
        let systemd_analyze = require!(SystemdAnalyze);
        let root = unpacked(&dpkg_deb, &deb);
        let unit = root.path().join("lib/systemd/system/spanprof.service");
        // Its programs are looked for on this machine.
        let content = fs::read_to_string(&unit).unwrap();
        let program = root.path().join("usr/bin/spanprof");
        let here = content.replace("/usr/bin/spanprof", program.to_str().unwrap());
        let verify = |content: &str| {
            fs::write(&unit, content).unwrap();
            let mut verify = Command::new(&systemd_analyze);
            let done = verify.args(["verify", "--man=no"]).arg(&unit).output().unwrap();
            let said = String::from_utf8_lossy(&done.stderr).into_owned();
            said.lines()
                .filter(|line| line.contains("spanprof.service"))
                .map(str::to_owned)
                .collect()
        };
        assert_eq!(verify(&here), [""; 0]);
        let wrong: Vec<String> = verify(&here.replace("NoNewPrivileges=", "NoNewPrivilege="));
        assert!(wrong.iter().any(|line| line.contains("NoNewPrivilege")), "{wrong:?}");
    }

    #[test]
    fn the_capabilities_of_the_unit_are_enough_and_are_given_up() {
        require!(Root);
        let (deb, dpkg_deb, setpriv) = (require!(Deb), require!(DpkgDeb), require!(Setpriv));
        let root = unpacked(&dpkg_deb, &deb);
        let unit = root.path().join("lib/systemd/system/spanprof.service");
        let unit = fs::read_to_string(unit).unwrap();
        let capabilities = setting(&unit, "CapabilityBoundingSet");
        // What a container of tests does not have cannot be asked for.
        let here = fs::read_to_string("/proc/self/status").unwrap();
        let bounding = here.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        let resource = u64::from_str_radix(bounding, 16).unwrap() >> 24 & 1 == 1;
        let names: BTreeSet<String> = capabilities
            .iter()
            .filter(|name| *name != "CAP_SYS_RESOURCE" || resource)
            .map(|name| name.trim_start_matches("CAP_").to_lowercase())
            .collect();
        assert!(names.contains("bpf") && names.len() >= 9, "{names:?}");
        let relay = Relay::alone(Act::Answer(STORED)).unwrap();
        let options = root.path().join("etc/spanprof/spanprof.yaml");
        let text = fs::read_to_string(&options).unwrap();
        let text =
            text.replace("http://localhost:4040", &relay.url()) + "\nwindow: 1s\nlisten: off\n";
        fs::write(&options, text).unwrap();
        let start = setting(&unit, "ExecStart").join(" ");
        let start = start
            .replace("/usr/bin", root.path().join("usr/bin").to_str().unwrap())
            .replace("/etc/spanprof", root.path().join("etc/spanprof").to_str().unwrap());
        let added: String = names.iter().map(|name| format!(",+{name}")).collect();
        let mut command = Command::new(setpriv);
        command
            .arg(format!("--bounding-set=-all{added}"))
            .args(["--inh-caps=-all", "--no-new-privs"]);
        let mut agent = Process::start(command.args(start.split(' ')).env_clear()).unwrap();
        poll_until("profiles arrive", || Ok((relay.pushes()?.len() > 2).then_some(()))).unwrap();
        agent.terminate().unwrap();
        assert!(agent.wait().unwrap().success());
    }
}

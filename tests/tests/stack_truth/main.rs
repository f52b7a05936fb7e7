//! Stopped threads of real programs: the stack that our step finds is the one that gdb finds, address
//! by address, in 99.5 of 100. What gdb does not know of V8 and of Go, `fixtures/frames.py` tells it.

#[cfg(test)]
mod compare;

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;
    use std::process::Command;

    use spanprof_tests::require;
    use spanprof_tests::workload::Program;

    use crate::compare::check;

    fn with(program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command.args(arguments);
        command
    }

    #[test]
    fn programs_without_frame_pointers() {
        let program = Program::compile_with("unwind", &["-fomit-frame-pointer"]).unwrap();
        for mode in ["chain", "recurse-20", "alloca", "expression", "signal", "read", "vdso"] {
            // Until it is killed: it has no stdin that could end.
            check(mode, || with(program.arg(), &[mode, "1000000"]));
        }
    }

    #[test]
    fn python() {
        require!(Python);
        let source = "import json, re\nwhile True:\n d = {str(i): list(range(50)) for i in range(100)}\n \
                      s = json.dumps(d); json.loads(s); sorted(re.findall('[0-9]+', s))";
        check("python3", || with("python3", &["-c", source]));
    }

    #[test]
    fn node() {
        let node = require!(Node);
        let source = "function fib(n) { return n < 2 ? n : fib(n - 1) + fib(n - 2); }
            function text(n) {
              const all = Array.from({ length: n }, (_, i) => ({ key: (i * 7919) % n, name: 'x' + i }));
              all.sort((a, b) => a.key - b.key);
              const json = JSON.stringify(JSON.parse(JSON.stringify(all)));
              return json.replace(/\"key\":(\\d+)/g, (_, key) => key + 1).length;
            }
            for (let sum = 0; ;) sum += fib(15) + text(200);";
        check("node", || with(node.to_str().unwrap(), &["-e", source]));
    }

    /// Its runtime goes from stack to stack.
    #[test]
    fn go() {
        let program =
            Program::compile_by(&require!(GoToolchain), "goroutines.go", &["build"]).unwrap();
        check("go", || with(program.arg(), &[]));
    }

    /// C code is called on a thread's own stack, and nothing but the runtime's table describes Go's.
    #[test]
    fn go_with_c() {
        let program = Program::compile_by(&require!(GoToolchain), "cgo.go", &["build"]).unwrap();
        check("go with c", || with(program.arg(), &[]));
    }

    #[test]
    fn perl() {
        require!(Perl);
        let source = "while(1){my %h=map{$_=>$_*2}1..1000;my @s=sort{$h{$a}<=>$h{$b}}keys %h;\
                      join(',',@s)=~/(\\d+),9/;}";
        check("perl", || with("perl", &["-e", source]));
    }

    #[test]
    fn a_c_compiler() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = String::from("int f0(int n) { return n; }\n");
        for number in 1..4000 {
            writeln!(
                source,
                "int f{number}(int n) {{ int s = {number}; for (int i = 0; i < n; i++) {{ s += s * i \
                 ^ n; if (s % 7 == 3) s -= f{}(n - 1); }} return s; }}",
                number - 1
            )
            .unwrap();
        }
        let file = folder.path().join("source.c");
        std::fs::write(&file, source).unwrap();
        let path = Command::new("cc").arg("-print-prog-name=cc1").output().unwrap();
        let compiler = String::from_utf8(path.stdout).unwrap();
        let file = file.to_str().unwrap();
        check("cc1", || with(compiler.trim(), &["-quiet", "-O2", file, "-o", "/dev/null"]));
    }

    #[test]
    fn a_rust_compiler() {
        let folder = tempfile::tempdir().unwrap();
        let mut source = String::new();
        for number in 0..1500 {
            writeln!(
                source,
                "pub fn f{number}(n: usize) -> String {{ let mut v: Vec<String> = (0..n).map(|i| \
                 format!(\"{{}}{{}}\", i, {number})).collect(); v.sort(); v.join(\",\") }}"
            )
            .unwrap();
        }
        let file = folder.path().join("source.rs");
        std::fs::write(&file, source).unwrap();
        let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
        // Not rustup's proxy, which starts it.
        let compiler = format!("{}/bin/rustc", String::from_utf8(sysroot.stdout).unwrap().trim());
        let (file, out) = (file.to_str().unwrap(), folder.path().to_str().unwrap());
        check("rustc", || with(&compiler, &["--crate-type=lib", "-O", "--out-dir", out, file]));
    }
}

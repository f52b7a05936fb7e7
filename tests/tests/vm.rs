//! The BPF programs on other kernels than this machine's: each loads them, walks stacks by table
//! and reads spans. `src/bin/guest.rs` says what is checked there.

#[cfg(test)]
mod tests {
    use std::path::Path;

    use spanprof_tests::process_context;
    use spanprof_tests::require;
    use spanprof_tests::span_writer::{KEYS, SERVICE};
    use spanprof_tests::virtual_machine::guest::{
        FAILED, HOOKED, PASSED, SPANPROF, SPANS, SPANS_CONTEXT, UNWIND, UNWIND_STATIC,
    };
    use spanprof_tests::virtual_machine::{boot, initramfs::Initramfs};
    use spanprof_tests::workload::Program;

    fn archive(spanprof: &Path) -> Vec<u8> {
        let folder = tempfile::tempdir().unwrap();
        let context = folder.path().join("context");
        std::fs::write(&context, process_context::payload(SERVICE, &KEYS, None)).unwrap();
        let unwind = |flag| Program::compile_with("unwind", &["-fomit-frame-pointer", flag]);
        let (dynamic, fixed) = (unwind("-pie").unwrap(), unwind("-static").unwrap());
        let spans = Program::compile_with("spans", &["-rdynamic"]).unwrap();
        let hooked = Program::compile("hooked").unwrap();
        let mut files = Initramfs::new().unwrap();
        files.program("/init", Path::new(env!("CARGO_BIN_EXE_guest"))).unwrap();
        files.program(SPANPROF, spanprof).unwrap();
        files.program(UNWIND, dynamic.path()).unwrap();
        files.program(UNWIND_STATIC, fixed.path()).unwrap();
        files.program(SPANS, spans.path()).unwrap();
        files.program(HOOKED, hooked.path()).unwrap();
        files.file(Path::new(SPANS_CONTEXT), &context).unwrap();
        files.finish().unwrap()
    }

    fn check(qemu: &Path, kernel: &Path, spanprof: &Path) {
        let console = boot(qemu, kernel, &archive(spanprof)).unwrap();
        println!("{console}");
        // The kernel may have written on the same line.
        assert!(!console.contains(FAILED) && console.contains(PASSED), "{console}");
    }

    #[test]
    fn linux_5_10() {
        let (qemu, kernel) = (require!(Qemu), require!(Kernel("5.10")));
        check(&qemu, &kernel, &require!(Spanprof));
    }

    /// The oldest kernel with `bpf_loop` that a distribution maintains.
    #[test]
    fn linux_6_1() {
        let (qemu, kernel) = (require!(Qemu), require!(Kernel("6.1")));
        check(&qemu, &kernel, &require!(Spanprof));
    }

    #[test]
    fn linux_6_12() {
        let (qemu, kernel) = (require!(Qemu), require!(Kernel("6.12")));
        check(&qemu, &kernel, &require!(Spanprof));
    }

    #[test]
    fn linux_7() {
        let (qemu, kernel) = (require!(Qemu), require!(Kernel("7")));
        check(&qemu, &kernel, &require!(Spanprof));
    }
}

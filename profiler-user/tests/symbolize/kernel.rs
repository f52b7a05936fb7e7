//! Kernel addresses.

use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use profiler_user::attribute::Location;
use profiler_user::decode::Addr;
use profiler_user::symbolize::{Symbolizer, SymbolizerConfig, Unsymbolized};

use crate::support::{config, folder, functions, name, unsymbolized};

pub(crate) const TESTS: &[crate::Test] = &[
    ("kernel_functions_of_a_known_list", of_a_known_list),
    ("kernel_functions_of_this_kernel", of_this_kernel),
    ("hidden_kernel_functions_tell_no_address", hidden),
    ("a_module_loaded_later_is_found", a_module_loaded_later),
];

fn kernel(address: u64) -> Location {
    Location::Kernel(Addr(address))
}

const LIST: &str = "ffffffff81000000 T _text\n\
    ffffffff81000100 T do_work\n\
    ffffffff81000180 d some_data\n\
    ffffffff81000200 t _RNvCs1234_4rust6kernel\n\
    ffffffff81000300 T _etext\n\
    ffffffffc0000000 t module_function\t[module]\n\
    ffffffffc0100000 t bpf_prog_6deef7357e7b4530_sample\t[bpf]\n";

fn of_a_known_list() {
    let folder = folder();
    let kallsyms = folder.path().join("kallsyms");
    fs::write(&kallsyms, LIST).unwrap();
    let mut symbolizer = Symbolizer::new(SymbolizerConfig { kallsyms, ..config(true) });
    let expected = [
        (0xffff_ffff_8100_0100, "do_work"),
        (0xffff_ffff_8100_01ff, "do_work"),
        (0xffff_ffff_8100_0210, "rust::kernel"),
        (0xffff_ffff_c000_0010, "module_function"),
        (0xffff_ffff_c010_0010, "bpf_prog_6deef7357e7b4530_sample"),
        (0xffff_ffff_8000_0000, "[kernel]+0xffffffff80000000"),
    ];
    let locations = expected.map(|(address, _)| kernel(address));
    let names = name(&mut symbolizer, &[], &locations);
    for (address, function) in expected {
        assert_eq!(functions(&names, kernel(address)), [function]);
    }
    assert_eq!(unsymbolized(&symbolizer, Unsymbolized::NoSymbol), 1);
}

/// The kernel's own list is the judge; a place can have several names.
fn of_this_kernel() {
    let list = fs::read_to_string("/proc/kallsyms").unwrap();
    let mut functions_at = HashMap::<u64, Vec<&str>>::new();
    for line in list.lines() {
        let words: Vec<_> = line.split_ascii_whitespace().collect();
        let address = u64::from_str_radix(words[0], 16).unwrap();
        if matches!(words[1], "t" | "T") && address > 0 {
            functions_at.entry(address).or_default().push(words[2]);
        }
    }
    let is_hidden = functions_at.is_empty();
    let mut addresses: Vec<u64> = functions_at.keys().copied().step_by(50).collect();
    addresses.extend(is_hidden.then_some(0xffff_ffff_8100_0000));
    let locations: Vec<_> = addresses.iter().map(|address| kernel(*address)).collect();
    let mut symbolizer = Symbolizer::new(config(true));
    let names = name(&mut symbolizer, &[], &locations);
    for address in addresses {
        let function = functions(&names, kernel(address));
        if is_hidden {
            assert_eq!(function, ["[kernel]"]);
        } else {
            let judge = &functions_at[&address];
            let demangled =
                judge.iter().any(|name| name.starts_with("_R") || name.starts_with("_Z"));
            assert!(
                demangled || judge.contains(&function[0]),
                "{address:#x} {function:?} {judge:?}"
            );
        }
    }
}

fn hidden() {
    let folder = folder();
    let kallsyms = folder.path().join("kallsyms");
    fs::write(&kallsyms, "0000000000000000 T _text\n0000000000000000 T do_work\n").unwrap();
    let missing = folder.path().join("missing");
    for kallsyms in [kallsyms, missing] {
        let mut symbolizer = Symbolizer::new(SymbolizerConfig { kallsyms, ..config(true) });
        let location = kernel(0xffff_ffff_8100_0100);
        let names = name(&mut symbolizer, &[], &[location]);
        assert_eq!(functions(&names, location), ["[kernel]"]);
        assert_eq!(unsymbolized(&symbolizer, Unsymbolized::KernelHidden), 1);
    }
}

fn a_module_loaded_later() {
    let folder = folder();
    let kallsyms = folder.path().join("kallsyms");
    fs::write(&kallsyms, LIST).unwrap();
    let setup = SymbolizerConfig {
        kallsyms: kallsyms.clone(),
        kallsyms_age: Duration::ZERO,
        ..config(true)
    };
    let mut symbolizer = Symbolizer::new(setup);
    let [image, old, new] = [0xffff_ffff_8100_0100, 0xffff_ffff_c000_0010, 0xffff_ffff_d000_0010];
    let first = name(&mut symbolizer, &[], &[kernel(image), kernel(old)]);
    assert_eq!(functions(&first, kernel(old)), ["module_function"]);
    // One module goes, another one comes to its place, a third is new.
    let changed = LIST.replace("module_function\t[module]", "successor\t[other]");
    fs::write(&kallsyms, format!("{changed}ffffffffd0000000 t newcomer\t[new]\n")).unwrap();
    let second = name(&mut symbolizer, &[], &[kernel(new)]);
    assert_eq!(functions(&second, kernel(new)), ["newcomer"]);
    let third = name(&mut symbolizer, &[], &[kernel(image), kernel(old)]);
    assert_eq!(functions(&third, kernel(image)), ["do_work"]);
    assert_eq!(functions(&third, kernel(old)), ["successor"]);
}

use std::collections::BTreeMap;
use std::io::Read as _;

use proptest::prelude::*;
use prost::Message as _;

use super::proto::{Location, Mapping, Profile, Sample};
use super::test_window::{PERIOD_NS, any_seen, checkout, window};
use super::*;

fn decode(encoded: &EncodedProfile) -> Profile {
    Profile::decode(&encoded.pprof[..]).unwrap()
}

fn text(profile: &Profile, index: i64) -> &str {
    &profile.string_table[usize::try_from(index).unwrap()]
}

fn location(profile: &Profile, id: u64) -> &Location {
    profile.location.iter().find(|location| location.id == id).unwrap()
}

fn mapping(profile: &Profile, id: u64) -> &Mapping {
    profile.mapping.iter().find(|mapping| mapping.id == id).unwrap()
}

/// `leaf<caller<root labels`, inlined functions with `+`.
fn render(profile: &Profile, sample: &Sample) -> String {
    let frames: Vec<_> = sample
        .location_id
        .iter()
        .map(|id| {
            let functions = location(profile, *id).line.iter().map(|line| {
                let function = profile.function.iter().find(|f| f.id == line.function_id).unwrap();
                text(profile, function.name)
            });
            functions.collect::<Vec<_>>().join("+")
        })
        .collect();
    let labels: Vec<_> = sample
        .label
        .iter()
        .map(|label| format!("{}={}", text(profile, label.key), text(profile, label.str)))
        .collect();
    format!("{} | {}", frames.join(" < "), labels.join(" "))
}

fn counts(profiles: &[Profile]) -> BTreeMap<String, Vec<i64>> {
    let mut counts = BTreeMap::new();
    for profile in profiles {
        for sample in &profile.sample {
            let twice = counts.insert(render(profile, sample), sample.value.clone());
            assert_eq!(twice, None);
        }
    }
    counts
}

#[test]
fn one_service_for_pyroscope() {
    let (window, names) = checkout();
    let options = EncodeOptions::pyroscope(false);
    let encoded = encode(&window, &window.groups[0], &names, &options);
    assert_eq!((encoded.parts.len(), encoded.zero_value_samples), (1, 0));
    let part = &encoded.parts[0];
    assert_eq!((part.samples, part.cpu_ns, part.entries), (58, 58 * PERIOD_NS, 6));
    let totals = validate(&part.pprof).unwrap();
    assert_eq!(totals.values, [("cpu".to_owned(), 580_000_000)]);

    let profile = decode(part);
    let ms = |ms: i64| vec![ms * 1_000_000];
    let expected = [
        ("pay::hash+pay::sign < pay < main | span_id=0101010101010101", ms(300)),
        ("do_write < libc.so.6+WRITE < pay < main | span_id=0101010101010101", ms(50)),
        ("cart::sort < cart < main | span_id=0202020202020202", ms(120)),
        ("cart < main | span_id=0303030303030303", ms(30)),
        ("cart < main | span_id=0404040404040404", ms(10)),
        ("[unmapped] < main | ", ms(70)),
    ];
    let write = profile.string_table.iter().find(|s| s.starts_with("libc.so.6+0x")).unwrap();
    let expected = expected
        .into_iter()
        .map(|(line, value)| (line.replace("libc.so.6+WRITE", write), value))
        .collect();
    assert_eq!(counts(std::slice::from_ref(&profile)), expected);

    assert_eq!(profile.time_nanos, window.start_unix_ns);
    assert_eq!(profile.duration_nanos, window.duration_ns);
    assert_eq!(profile.period, 10_000_000);
}

#[test]
fn mappings_and_addresses() {
    let (window, names) = checkout();
    let options = EncodeOptions::pyroscope(false);
    let part = &encode(&window, &window.groups[0], &names, &options).parts[0];
    let profile = decode(part);
    let main = &profile.mapping[0];
    assert_eq!(text(&profile, main.filename), "/app/checkout");
    assert_eq!(text(&profile, main.build_id), "ab01");
    assert!(main.has_filenames && main.has_line_numbers && main.has_inline_frames);
    let others: Vec<_> =
        profile.mapping[1..].iter().map(|mapping| text(&profile, mapping.filename)).collect();
    assert_eq!(others.len(), 3);
    for other in ["/lib/libc.so.6", "[kernel.kallsyms]", "[unresolved]"] {
        assert!(others.contains(&other), "{others:?}");
    }
    for location in &profile.location {
        let mapping = mapping(&profile, location.mapping_id);
        let expected = match text(&profile, mapping.filename) {
            "[kernel.kallsyms]" => 0xffff_ffff_8000_0000..0xffff_ffff_9000_0000,
            "[unresolved]" => 0..1,
            _ => 1..1_000_000,
        };
        assert!(expected.contains(&location.address), "{location:?}");
    }
}

#[test]
fn a_whole_window_in_one_file() {
    let (window, names) = checkout();
    let encoded = encode_window(&window, &names);
    let totals = validate(&encoded.pprof).unwrap();
    let expected = [("samples".to_owned(), 61), ("cpu".to_owned(), 610_000_000)];
    assert_eq!(totals.values, expected);
    let counts = counts(&[decode(&encoded)]);
    let labels = "service_name=checkout span_id=0202020202020202 span_name=GET /cart \
                  trace_id=02020202020202020202020202020202";
    assert_eq!(counts[&format!("cart::sort < cart < main | {labels}")], [12, 120_000_000]);
    let sh = "service_name=unknown_service:sh";
    assert_eq!(counts[&format!("do_write | {sh}")], [2, 20_000_000]);
    assert_eq!(counts[&format!("[no stack] | {sh}")], [1, 10_000_000]);
}

#[test]
fn an_empty_window_is_a_valid_file_and_nothing_to_push() {
    let (mut window, names) = checkout();
    window.groups[0].rows.clear();
    let encoded = encode(&window, &window.groups[0], &names, &EncodeOptions::pyroscope(true));
    assert_eq!(encoded, Encoded::default());

    window.groups.clear();
    let encoded = encode_window(&window, &names);
    assert_eq!((encoded.samples, encoded.entries), (0, 0));
    assert_eq!(validate(&encoded.pprof).unwrap().entries, 0);
}

#[test]
fn rows_without_value_are_counted_not_encoded() {
    let (mut window, names) = checkout();
    window.groups[0].rows[0].cpu_ns = 0;
    let samples = window.groups[0].rows[0].samples;
    let encoded = encode(&window, &window.groups[0], &names, &EncodeOptions::pyroscope(true));
    assert_eq!(encoded.zero_value_samples, samples);
    assert_eq!(encoded.parts[0].samples + samples, window.groups[0].samples());
    // A file has the sample count as well, which is not 0.
    let in_file = encode_window(&window, &names);
    assert_eq!(in_file.samples, window.samples());
}

#[test]
fn enormous_values_are_saturated() {
    let (mut window, names) = checkout();
    window.period_ns = u64::MAX;
    window.groups[0].rows[0].cpu_ns = u64::MAX;
    let encoded = encode_window(&window, &names);
    assert_eq!(validate(&encoded.pprof).unwrap().values[1].1, i64::MAX);
}

#[test]
fn gzip_is_the_same_file_without_a_time() {
    let (window, names) = checkout();
    let encoded = encode_window(&window, &names);
    let gzip = encoded.gzip();
    assert_eq!(gzip, encoded.gzip());
    assert_eq!(gzip[..8], [0x1f, 0x8b, 8, 0, 0, 0, 0, 0], "magic, deflate, no flags, no time");
    let mut plain = Vec::new();
    flate2::read::GzDecoder::new(&gzip[..]).read_to_end(&mut plain).unwrap();
    assert_eq!(plain, encoded.pprof);
}

#[test]
fn go_names_are_not_what_pyroscope_takes_for_go() {
    let (window, mut names) = checkout();
    for frames in names.frames.values_mut() {
        let mut renamed = frames.to_vec();
        for frame in &mut renamed {
            frame.function = format!("{}.go", frame.function).into();
            frame.file = Some("runtime/proc.go".into());
        }
        *frames = renamed.into();
    }
    for binary in names.binaries.values_mut() {
        binary.path = ".go/server.go".into();
    }
    let is_go = |string: &String| string.starts_with(".go") || string.ends_with(".go");
    let options = EncodeOptions::pyroscope(true);
    let part = &encode(&window, &window.groups[0], &names, &options).parts[0];
    let profile = decode(part);
    assert!(!profile.string_table.iter().any(is_go), "{:?}", profile.string_table);
    assert!(profile.string_table.iter().any(|string| string == "main.go_"));
    assert!(decode(&encode_window(&window, &names)).string_table.iter().any(is_go));
}

#[test]
fn a_sample_above_the_byte_limit_goes_alone() {
    let (window, names) = checkout();
    let mut options = EncodeOptions::pyroscope(false);
    options.limits.max_bytes = 1;
    let encoded = encode(&window, &window.groups[0], &names, &options);
    assert_eq!(encoded.parts.len(), 6);
    assert!(encoded.parts.iter().all(|part| part.entries == 1));
    assert_eq!(encoded.parts.iter().map(|part| part.samples).sum::<u64>(), 58);
}

#[test]
fn broken_profiles_are_found() {
    let (window, names) = checkout();
    let good = decode(&encode_window(&window, &names));
    let check = |what: &str, spoil: &dyn Fn(&mut Profile), expected: &str| {
        let mut profile = good.clone();
        spoil(&mut profile);
        let error = validate(&profile.encode_to_vec()).expect_err(what).to_string();
        assert!(error.contains(expected), "{what}: {error}");
    };
    check("twice", &|p| p.string_table.push("cpu".into()), "there twice");
    check("first", &|p| p.string_table[0].push('x'), "first string");
    check("string", &|p| p.function[0].name = 9999, "refers to string 9999");
    check("negative", &|p| p.function[0].name = -1, "refers to string -1");
    check("zero id", &|p| p.location[0].id = 0, "location 0");
    check("same id", &|p| p.mapping[1].id = p.mapping[0].id, "mapping 1");
    check("function", &|p| p.location[0].line[0].function_id = 99, "refers to function 99");
    check("mapping", &|p| p.location[0].mapping_id = 0, "refers to mapping 0");
    check("location", &|p| p.sample[0].location_id[0] = 99, "refers to location 99");
    check("no line", &|p| p.location[0].line.clear(), "has no name");
    check("no name", &|p| p.function[0].name = 0, "has no name");
    check("no functions", &|p| p.mapping[0].has_functions = false, "has no functions");
    check("no period", &|p| p.period_type = None, "no period type");
    check("no type", &|p| p.sample_type.clear(), "no sample type");
    check("values", &|p| p.sample[0].value.push(1), "one value for each");
    check("below", &|p| p.sample[0].value[0] = -1, "negative");
    check("zero", &|p| p.sample[0].value = vec![0, 0], "are 0");
    check("same", &|p| p.sample.push(p.sample[0].clone()), "same stack and labels");
    check("label", &|p| p.sample[0].label[0].str = 0, "no text");
    check("default", &|p| p.default_sample_type = 1, "default sample type");
    assert!(matches!(validate(&[0xff]), Err(Invalid::Malformed(_))));
}

proptest! {
    #[test]
    fn any_window_is_a_valid_file(seen in any_seen()) {
        let (window, names) = window(&seen, [1, 2]);
        let encoded = encode_window(&window, &names);
        let totals = validate(&encoded.pprof).unwrap();
        prop_assert_eq!(encoded.samples, window.samples());
        prop_assert_eq!(encoded.cpu_ns, window.samples() * PERIOD_NS);
        prop_assert_eq!(totals.entries, encoded.entries);
        prop_assert_eq!(totals.values[0].1.cast_unsigned(), encoded.samples);
        prop_assert_eq!(totals.values[1].1.cast_unsigned(), encoded.cpu_ns);
    }

    #[test]
    fn only_content_shows_in_the_bytes(
        (seen, shuffled) in any_seen().prop_flat_map(|seen| (Just(seen.clone()), Just(seen).prop_shuffle()))
    ) {
        let (one, one_names) = window(&seen, [1, 2]);
        let (two, two_names) = window(&shuffled, [9, 4]);
        prop_assert_eq!(encode_window(&one, &one_names), encode_window(&two, &two_names));
        let mut options = EncodeOptions::pyroscope(true);
        options.limits = Limits { max_samples: 5, max_bytes: 900 };
        for (one_group, two_group) in one.groups.iter().zip(&two.groups) {
            let one = encode(&one, one_group, &one_names, &options);
            let two = encode(&two, two_group, &two_names, &options);
            prop_assert_eq!(one, two);
        }
    }

    #[test]
    fn parts_are_within_limits_and_add_up(
        seen in any_seen(),
        max_samples in 0_usize..20,
        max_bytes in 1_usize..3000,
    ) {
        let (window, names) = window(&seen, [1, 2]);
        for group in &window.groups {
            let mut options = EncodeOptions::pyroscope(true);
            options.span_name = true;
            options.limits = Limits::NONE;
            let whole = encode(&window, group, &names, &options);
            prop_assert!(whole.parts.len() <= 1);
            options.limits = Limits { max_samples, max_bytes };
            let split = encode(&window, group, &names, &options);
            for part in &split.parts {
                let totals = validate(&part.pprof).unwrap();
                prop_assert_eq!(totals.values[0].1.cast_unsigned(), part.cpu_ns);
                prop_assert_eq!(totals.entries, part.entries);
                prop_assert!(part.entries > 0 && part.entries <= max_samples.max(1));
                prop_assert!(part.pprof.len() <= max_bytes || part.entries == 1);
            }
            let samples: u64 = split.parts.iter().map(|part| part.samples).sum();
            prop_assert_eq!(samples + split.zero_value_samples, group.samples());
            let whole: Vec<_> = whole.parts.iter().map(decode).collect();
            let split: Vec<_> = split.parts.iter().map(decode).collect();
            for (index, part) in (0_i64..).zip(&split) {
                prop_assert_eq!(part.time_nanos, window.start_unix_ns + 1_000_000 * index);
            }
            prop_assert_eq!(counts(&whole), counts(&split));
        }
    }
}

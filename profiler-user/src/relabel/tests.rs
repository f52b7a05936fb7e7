use super::*;

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|&(name, value)| (name.to_owned(), value.to_owned())).collect()
}

/// The labels after the rules; `None`: dropped.
fn relabelled(yaml: &str, pairs: &[(&str, &str)]) -> Option<Labels> {
    let rules = read(yaml).unwrap();
    let mut labels = labels(pairs);
    apply(&rules, &mut labels).then_some(labels)
}

#[track_caller]
fn check(yaml: &str, before: &[(&str, &str)], after: &[(&str, &str)]) {
    assert_eq!(relabelled(yaml, before), Some(labels(after)), "{yaml}");
}

#[track_caller]
fn refused(yaml: &str, because: &str) {
    let error = read(yaml).unwrap_err().to_string();
    assert!(error.contains(because), "{error}");
}

/// The cases of Prometheus's documentation of relabelling, each action by itself.
#[test]
fn each_action_does_what_it_does_in_prometheus() {
    let abc = [("a", "foo"), ("b", "bar"), ("c", "baz")];
    check(
        "[{source_labels: [a], regex: f(.*), target_label: d, replacement: 'ch${1}-ch$1'}]",
        &abc,
        &[("a", "foo"), ("b", "bar"), ("c", "baz"), ("d", "choo-choo")],
    );
    check(
        "[{source_labels: [a, b], regex: 'f(.*);(.*)r', target_label: a, replacement: 'b${1}${2}m'}]",
        &abc,
        &[("a", "boobam"), ("b", "bar"), ("c", "baz")],
    );
    // Not matched: nothing happens. Matched by nothing: the label goes.
    check("[{source_labels: [a], regex: o+, target_label: b, replacement: x}]", &abc, &abc);
    check(
        "[{source_labels: [a], target_label: b, replacement: ''}]",
        &abc,
        &[("a", "foo"), ("c", "baz")],
    );
    // Without anything but a target: all of the source.
    check(
        "[{source_labels: [b], target_label: a}]",
        &abc,
        &[("a", "bar"), ("b", "bar"), ("c", "baz")],
    );
    check(
        "[{source_labels: [a], target_label: '${1}_x'}]",
        &[("a", "q")],
        &[("a", "q"), ("q_x", "q")],
    );
    check("[{source_labels: [a], target_label: '${1}.x'}]", &[("a", "q")], &[("a", "q")]);
    check(
        "[{action: LowerCase, source_labels: [a], target_label: b}]",
        &[("a", "bAr")],
        &[("a", "bAr"), ("b", "bar")],
    );
    check(
        "[{action: uppercase, source_labels: [a], target_label: b}]",
        &[("a", "bAr")],
        &[("a", "bAr"), ("b", "BAR")],
    );
    check(
        "[{action: labelmap, regex: 'm_(.+)'}]",
        &[("m_x", "1"), ("n", "2")],
        &[("m_x", "1"), ("x", "1"), ("n", "2")],
    );
    check(
        "[{action: labelmap, regex: 'm_(.+)', replacement: 'k_$1'}]",
        &[("m_x", "1")],
        &[("m_x", "1"), ("k_x", "1")],
    );
    check("[{action: labeldrop, regex: 'm_.*'}]", &[("m_x", "1"), ("n", "2")], &[("n", "2")]);
    check("[{action: labelkeep, regex: 'm_.*'}]", &[("m_x", "1"), ("n", "2")], &[("m_x", "1")]);
    // The value is that of Prometheus's own test of hashmod.
    check(
        "[{action: hashmod, source_labels: [c], target_label: d, modulus: 1000}]",
        &abc,
        &[("a", "foo"), ("b", "bar"), ("c", "baz"), ("d", "976")],
    );
}

#[test]
fn series_are_kept_and_dropped() {
    let pairs = [("a", "foo"), ("b", "foo"), ("c", "bar")];
    let kept = |yaml: &str| relabelled(yaml, &pairs).is_some();
    assert!(kept("[{action: keep, source_labels: [a], regex: fo+}]"));
    assert!(!kept("[{action: keep, source_labels: [a], regex: o}]"), "anchored");
    assert!(!kept("[{action: drop, source_labels: [a], regex: .*o.*}]"));
    assert!(kept("[{action: drop, source_labels: [nothing], regex: .+}]"));
    assert!(!kept("[{action: drop, source_labels: [nothing], regex: ''}]"));
    assert!(kept("[{action: keepequal, source_labels: [a], target_label: b}]"));
    assert!(!kept("[{action: keepequal, source_labels: [a], target_label: c}]"));
    assert!(!kept("[{action: dropequal, source_labels: [a], target_label: b}]"));
    assert!(kept("[{action: dropequal, source_labels: [a], target_label: c}]"));
    // One after the other.
    assert!(!kept(
        "[{target_label: d, replacement: x}, {action: drop, source_labels: [d], regex: x}]"
    ));
}

/// As in Grafana's documentation of Alloy's `discovery.relabel` for profiles.
#[test]
fn rules_that_were_written_for_alloy_mean_the_same() {
    let yaml = "\
- {action: drop, regex: Succeeded|Failed|Completed, source_labels: [__meta_kubernetes_pod_phase]}
- {action: replace, source_labels: [__meta_kubernetes_namespace], target_label: namespace}
- {source_labels: [__meta_kubernetes_namespace, __meta_kubernetes_pod_container_name],
   separator: /, action: replace, regex: '(.*)', replacement: ebpf/$1, target_label: service_name}
- {action: labelmap, regex: __meta_kubernetes_pod_label_(.+)}
";
    let before = [
        ("__meta_kubernetes_namespace", "shop"),
        ("__meta_kubernetes_pod_container_name", "web"),
        ("__meta_kubernetes_pod_label_team", "a"),
        ("service_name", "checkout"),
    ];
    let after = relabelled(yaml, &before).unwrap();
    assert_eq!(after["service_name"], "ebpf/shop/web");
    assert_eq!((after["namespace"].as_str(), after["team"].as_str()), ("shop", "a"));
}

#[test]
fn what_prometheus_refuses_is_refused_with_the_number_of_the_rule() {
    refused("[{action: keep}, {action: explode}]", "rule 2: there is no action \"explode\"");
    refused("[{action: replace, source_labels: [a]}]", "takes a target_label");
    refused("[{target_label: a b}]", "\"a b\" is no name of a label");
    refused("[{action: hashmod, source_labels: [a], target_label: b}]", "modulus");
    refused("[{action: hashmod, modulus: 0, target_label: b}]", "modulus");
    refused("[{action: labeldrop, regex: x, target_label: b}]", "nothing else");
    refused("[{action: keepequal, target_label: b, regex: x}]", "nothing else");
    refused("[{action: drop, regex: '('}]", "rule 1");
    refused("[{action: drop, regex: 'a)(b'}]", "rule 1");
    refused("[{action: drop, regex: '(?:a{1000}){1000}'}]", "rule 1");
    refused("[{sourcelabels: [a]}]", "sourcelabels");
    refused("not rules", "");
    refused(&format!("[{}]", "{action: keep},".repeat(1001)), "more than 1000");
}

#[test]
fn numbers_and_truths_are_texts_here() {
    check(
        "[{source_labels: [a], regex: 8080, target_label: b, replacement: true}]",
        &[("a", "8080")],
        &[("a", "8080"), ("b", "true")],
    );
}

#[test]
fn filters_are_rules() {
    let kept = |keep: &[&str], drop: &[&str]| {
        let texts = |of: &[&str]| of.iter().map(|&it| it.to_owned()).collect::<Vec<_>>();
        let rules = filters(&texts(keep), &texts(drop)).unwrap();
        let mut labels = labels(&[
            ("namespace", "shop"),
            ("service_name", "web"),
            ("__meta_process_exe", "/bin/x"),
        ]);
        apply(&rules, &mut labels)
    };
    assert!(kept(&[], &[]));
    assert!(kept(&["namespace=sh.*", "service=web"], &["pod=.+", "exe=/usr/.*"]));
    assert!(!kept(&["namespace=sh.*", "container=web"], &[]));
    assert!(!kept(&[], &["exe=/bin/.*"]));
    for bad in ["namespace", "node=x", "pod=("] {
        assert!(filters(&[bad.to_owned()], &[]).is_err(), "{bad}");
    }
}

#[test]
fn any_labels_and_values_are_borne() {
    use proptest::prelude::*;
    let yaml =
        "[{source_labels: [a, b], regex: '(.*);(.*)', target_label: '$1', replacement: '$2$1'},
        {action: labelmap, regex: (.+)_(.*), replacement: $2}, {action: hashmod, source_labels: [a],
        target_label: h, modulus: 3}]";
    let rules = read(yaml).unwrap();
    proptest!(|(a in ".{0,40}", b in ".{0,40}", name in "[a-z_]{1,8}")| {
        let mut labels = labels(&[("a", &a), ("b", &b), (&name, &b)]);
        prop_assert!(apply(&rules, &mut labels));
        prop_assert!(labels.keys().all(|name| is_label_name(name)));
    });
}

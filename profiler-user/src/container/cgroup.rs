//! The grammar of control group paths.

use super::{Container, IDS_MAX};

/// The most bytes of a line that are looked at; `PATH_MAX` is 4096.
const LINE_MAX: usize = 8 << 10;
/// The most lines: version 1 has one for each controller.
const LINES_MAX: usize = 64;
/// Hex digits of a container's id.
const ID_LEN: usize = 64;

/// What a process's control groups say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cgroup {
    /// Its container, if it is in one.
    pub container: Option<Container>,
    /// Its systemd unit, if it is in none: `nginx.service`.
    pub unit: Option<String>,
}

impl Cgroup {
    /// Reads the text of `/proc/PID/cgroup`: of its lines, the first of version 2 (`0::`), systemd's
    /// own, `memory` and `cpu` that names a container or a unit.
    ///
    /// The path of a process outside of the reader's own cgroup namespace begins with `..`.
    #[must_use]
    pub fn parse(text: &[u8]) -> Self {
        let lines: Vec<(&str, &str)> = text
            .split(|byte| *byte == b'\n')
            .take(LINES_MAX)
            .filter(|line| line.len() <= LINE_MAX)
            .filter_map(|line| {
                let mut fields = std::str::from_utf8(line).ok()?.splitn(3, ':');
                let (_hierarchy, controllers) = (fields.next()?, fields.next()?);
                Some((controllers, fields.next()?))
            })
            .collect();
        let path_of = |wanted: &str| {
            let has = |of: &str| of == wanted || of.split(',').any(|it| it == wanted);
            lines.iter().find(|(controllers, _)| has(controllers)).map(|(_, path)| *path)
        };
        let paths = || ["", "name=systemd", "memory", "cpu"].into_iter().filter_map(path_of);
        if let Some(container) = paths().find_map(container_of) {
            return Self { container: Some(container), unit: None };
        }
        Self { container: None, unit: paths().find_map(unit_of) }
    }
}

fn parts(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|part| !part.is_empty() && *part != "..")
}

fn container_of(path: &str) -> Option<Container> {
    let mut found = Container::default();
    let mut first_pod = None;
    for part in parts(path) {
        found.of_user |= part == "user.slice" && found.ids.is_empty();
        if let Some(uid) = pod_uid(part)
            && found.pod_uid.is_none()
        {
            first_pod = Some(found.ids.len());
            found.pod_uid = Some(uid);
        }
        if found.ids.len() < IDS_MAX {
            found.ids.extend(container_id(part).map(str::to_owned));
        }
    }
    found.outside_of_pod = first_pod.unwrap_or(found.ids.len());
    (!found.ids.is_empty()).then_some(found)
}

/// `[cri-containerd-|docker-|crio-|libpod-|nerdctl-|libpod-payload-]<64 hex>[.scope]`,
/// `<slice>:cri-containerd:<64 hex>`, or what ECS names its tasks.
fn container_id(part: &str) -> Option<&str> {
    // Podman's and CRI-O's monitor of a container is not in it.
    if part.contains("conmon-") {
        return None;
    }
    if let Some((rest, id)) = part.rsplit_once(':') {
        let runtime = rest.rsplit(':').next()?;
        let known =
            ["cri-containerd", "nerdctl", "docker"].contains(&runtime) && rest.contains(':');
        return (known && is_id(id)).then_some(id);
    }
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let prefixes =
        ["cri-containerd-", "docker-", "crio-", "libpod-payload-", "libpod-", "nerdctl-"];
    let id = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    (is_id(id) || is_ecs_task(part)).then_some(id)
}

fn is_id(text: &str) -> bool {
    text.len() == ID_LEN && text.bytes().all(is_hex)
}

fn is_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// `<32 hex>-<up to 20 digits>`.
fn is_ecs_task(text: &str) -> bool {
    text.split_once('-').is_some_and(|(task, number)| {
        task.len() == 32
            && task.bytes().all(is_hex)
            && (1..=20).contains(&number.len())
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// `pod<uid>` at the beginning of a part or after a dash; up to its end, `.slice` or `:`.
fn pod_uid(part: &str) -> Option<String> {
    let part = part.split(':').next().unwrap_or(part);
    let part = part.strip_suffix(".slice").unwrap_or(part);
    let uid = match part.strip_prefix("pod") {
        Some(uid) => uid,
        None => part.split_once("-pod").map(|(_, uid)| uid)?,
    };
    // systemd's names of slices have no dashes of their own.
    let uid = uid.replace('_', "-").to_ascii_lowercase();
    is_uuid(&uid).then_some(uid)
}

fn is_uuid(text: &str) -> bool {
    const DASHES: [usize; 4] = [8, 13, 18, 23];
    text.len() == 36
        && text
            .bytes()
            .enumerate()
            .all(|(at, byte)| if DASHES.contains(&at) { byte == b'-' } else { is_hex(byte) })
}

/// The innermost service of the system, or the application's of a user's session.
fn unit_of(path: &str) -> Option<String> {
    let unit = parts(path).filter(|part| part.ends_with(".service")).last()?;
    // A user's own manager is no service that anybody thinks of, but the slice that all are in.
    let is_manager = unit.starts_with("user@");
    (!is_manager && unit.len() <= 256).then(|| unit.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POD: &str = "0123abcd-0123-4567-89ab-0123456789ab";
    const POD_: &str = "0123abcd_0123_4567_89ab_0123456789ab";

    fn id(digit: char) -> String {
        digit.to_string().repeat(64)
    }

    /// `A`, `B` and `D` stand for ids, `POD` and `POD_` for a pod's.
    fn spelled(line: &str) -> String {
        let line = line.replace("POD_", POD_).replace("POD", POD);
        ["A", "B", "D"].iter().fold(line, |line, name| {
            line.replace(&format!("<{name}>"), &id(name.to_lowercase().chars().next().unwrap()))
        })
    }

    #[track_caller]
    fn check(line: &str, expected: Option<(&str, bool)>) {
        let found = Cgroup::parse(spelled(line).as_bytes()).container;
        let said = found.as_ref().map(|it| (it.id().to_owned(), it.pod_uid.is_some()));
        let expected = expected.map(|(id, in_pod)| (spelled(&format!("<{id}>")), in_pod));
        assert_eq!(said, expected, "{line}");
        if let Some(uid) = found.and_then(|it| it.pod_uid) {
            assert_eq!(uid, POD, "{line}");
        }
    }

    #[test]
    fn pods() {
        for line in [
            "11:memory:/kubepods/besteffort/podPOD/<A>",
            "0::/kubepods/burstable/podPOD/<A>",
            "11:memory:/kubepods/podPOD/<A>",
            "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podPOD_.slice/cri-containerd-<A>.scope",
            "0::/kubepods.slice/kubepods-podPOD_.slice/crio-<A>.scope",
            "0::/kubepods.slice/kubepods-podPOD_.slice/crio-<A>.scope/container",
            "5:cpu,cpuacct:/kubepods-burstable-podPOD.slice:cri-containerd:<A>",
        ] {
            check(line, Some(("A", true)));
        }
    }

    #[test]
    fn whether_a_user_made_it() {
        let of_user = |line: &str| {
            Cgroup::parse(spelled(line).as_bytes()).container.map(|container| container.of_user)
        };
        let user = "user.slice/user-1000.slice/user@1000.service";
        assert_eq!(of_user(&format!("0::/{user}/user.slice/libpod-<A>.scope")), Some(true));
        assert_eq!(of_user(&format!("0::/../../{user}/docker-<A>.scope")), Some(true));
        assert_eq!(of_user(&format!("0::/docker/<A>/{user}/<B>")), Some(false));
        assert_eq!(of_user("0::/system.slice/docker-<A>.scope"), Some(false));
    }

    #[test]
    fn seen_from_a_cgroup_namespace() {
        check(
            "0::/../../../kubepods-besteffort.slice/kubepods-besteffort-podPOD_.slice/cri-containerd-<A>.scope",
            Some(("A", true)),
        );
        check("0::/../../../burstable/podPOD/<A>", Some(("A", true)));
        check("0::/../cri-containerd-<B>.scope", Some(("B", false)));
        check("0::/../<B>", Some(("B", false)));
        check("0::/", None);
        check("0::/../../../..", None);
        let host = Cgroup::parse(b"0::/../../../../system.slice/x.service");
        assert_eq!(host.unit.as_deref(), Some("x.service"));
    }

    #[test]
    fn no_container() {
        check("0::/kubepods.slice/kubepods-podPOD_.slice/crio-conmon-<A>.scope", None);
        check("0::/machine.slice/libpod-conmon-<A>.scope", None);
        check(
            "0::/user.slice/user-1000.slice/user@1000.service/app.slice/app-org.gnome.Terminal.slice/vte-spawn-POD.scope",
            None,
        );
        check("0::/system.slice/nginx.service", None);
        check("0::/lxc.payload.web/init.scope", None);
        check("0::/docker/buildkit/abcdefghijk", None);
        check("0::/kubepods/burstable/podPOD", None);
        check("0::/x/y:z:<A>", None);
        check("", None);
        check("0::/system.slice/<A>0", None);
    }

    #[test]
    fn other_runtimes() {
        for line in [
            "0::/docker/<A>",
            "0::/system.slice/docker-<A>.scope",
            "0::/system.slice/docker-<A>.scope/init",
            "0::/machine.slice/libpod-<A>.scope",
            "0::/machine.slice/libpod-<A>.scope/container",
            "0::/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-<A>.scope/container",
            "0::/system.slice/web.service/libpod-payload-<A>",
            "3:cpu:/a/b\n0::/docker/<A>",
            "12:name=systemd:/docker/<A>\n0::/",
        ] {
            check(line, Some(("A", false)));
        }
        let task = "0123456789abcdef0123456789abcdef-1234567890";
        let ecs = Cgroup::parse(format!("0::/ecs/{task}").as_bytes()).container.unwrap();
        assert_eq!(ecs.id(), task);
    }

    #[test]
    fn a_cluster_in_a_container_and_a_spoofer_both_have_two_ids() {
        let nested = "0::/system.slice/docker-<B>.scope/kubepods.slice/kubepods-podPOD_.slice/docker-<A>.scope";
        check(nested, Some(("A", true)));
        let found = Cgroup::parse(spelled(nested).as_bytes()).container.unwrap();
        assert_eq!((found.ids, found.outside_of_pod), (vec![id('b'), id('a')], 1));
        let spoofed =
            "0::/kubepods.slice/kubepods-podPOD_.slice/cri-containerd-<A>.scope/crio-<D>.scope";
        check(spoofed, Some(("A", true)));
        // Another pod's name below does not change whose it is.
        let uid = "ffffffff-0123-4567-89ab-0123456789ab";
        check(&format!("0::/kubepods/podPOD/<A>/pod{uid}/<D>"), Some(("A", true)));
    }

    #[test]
    fn units() {
        let unit = |line: &str| Cgroup::parse(line.as_bytes()).unit;
        assert_eq!(unit("0::/system.slice/nginx.service").as_deref(), Some("nginx.service"));
        assert_eq!(
            unit("1:name=systemd:/system.slice/a.service/sub\n0::/").as_deref(),
            Some("a.service")
        );
        assert_eq!(unit("0::/user.slice/user-0.slice/user@0.service/init.scope"), None);
        assert_eq!(unit("0::/user.slice/user-0.slice/session-1.scope"), None);
    }

    proptest! {
        #[test]
        fn any_text(text in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(Cgroup::parse(&text).unit.is_none_or(|unit| unit.ends_with(".service")));
        }

        #[test]
        fn any_path(path in "(/|pod|-|:|_|\\.scope|\\.slice|a{64}|[0-9a-f]{32}-1|\\.\\.|kubepods){0,20}") {
            let found = Cgroup::parse(format!("0::{path}").as_bytes());
            if let Some(container) = found.container {
                prop_assert!(!container.id().is_empty() && container.ids.len() <= IDS_MAX);
            }
        }
    }
}

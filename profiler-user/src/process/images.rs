//! What was known of one process id, from when on.

use std::{collections::VecDeque, sync::Arc};

use super::replaced::Replaced;
use super::{MappingSnapshot, Process, Unreadable};
use crate::decode::{Addr, BootTime};

/// What is known of a process id, each from a time on; the newest last.
///
/// A sample is looked up by its own time: an `exec` or a new process of the same id ends what was
/// known before, not what is asked about before.
#[derive(Debug, Default)]
pub(super) struct Images {
    list: VecDeque<Image>,
}

#[derive(Debug)]
struct Image {
    from: BootTime,
    /// Which of the programs that the process ran one after another.
    program: u64,
    process: Arc<Process>,
}

impl Images {
    /// From now on, this is known. What was said to hold from later on does not.
    pub(super) fn push(&mut self, from: BootTime, program: u64, process: Arc<Process>) {
        // Of the same time, this one counts for who asks by time. Stacks were walked with either.
        while self.list.back().is_some_and(|image| image.from > from) {
            self.list.pop_back();
        }
        self.list.push_back(Image { from, program, process });
        self.spread();
    }

    /// Replaces the newest; from when on it holds stays.
    pub(super) fn replace_newest(&mut self, process: Arc<Process>) {
        if let Some(image) = self.list.back_mut() {
            image.process = process;
        }
        self.spread();
    }

    /// What the newest says of itself held for the earlier mappings of its program too: a sample is
    /// looked up by the mappings that it was walked with, and has the span keys that were published
    /// meanwhile.
    fn spread(&mut self) {
        let Some(Image { program, process: newest, .. }) = self.list.back() else { return };
        let (program, newest) = (*program, Arc::clone(newest));
        for image in self.list.iter_mut().rev().skip(1) {
            let earlier = &image.process;
            let of_same_mappings = Process {
                snapshot: Arc::clone(&earlier.snapshot),
                unreadable: earlier.unreadable,
                ..Process::clone(&newest)
            };
            if image.program == program && !of_same_mappings.says_the_same(earlier) {
                image.process = Arc::new(of_same_mappings);
            }
        }
    }

    /// The newest, and from when on it holds.
    pub(super) fn newest(&self) -> Option<(BootTime, &Arc<Process>)> {
        self.list.back().map(|image| (image.from, &image.process))
    }

    /// What held at a time; before all of them, the oldest.
    pub(super) fn at(&self, at: BootTime) -> Option<&Arc<Process>> {
        self.image_at(at).map(|image| &image.process)
    }

    /// What a stack of these addresses, leaf first, was walked with that was sampled at a time, and
    /// whether that was wrong: the mappings of this epoch are those of another program, or
    /// something else was mapped by then where one of the addresses is.
    pub(super) fn walked(
        &self,
        at: BootTime,
        epoch: u64,
        addresses: &[Addr],
        replaced: &Replaced,
    ) -> Option<(Arc<Process>, bool)> {
        let then = self.image_at(at)?;
        let of_epoch = |image: &&Image| image.process.snapshot.epoch() == epoch;
        let walked = match self.list.iter().find(of_epoch) {
            Some(walked) if walked.program == then.program => walked,
            Some(_) => return Some((Arc::clone(&then.process), true)),
            // Walked with none, or with mappings that it had from its parent.
            None => then,
        };
        let snapshot = &walked.process.snapshot;
        if addresses.iter().all(|addr| replaced.was_there(snapshot, *addr, at)) {
            return Some((Arc::clone(&walked.process), false));
        }
        // The leaf stays, and what it is in may be known.
        let knows = |image: &&Image| {
            let snapshot = &image.process.snapshot;
            let there = |leaf: &Addr| {
                snapshot.find(*leaf).is_some() && replaced.was_there(snapshot, *leaf, at)
            };
            image.program == then.program && addresses.first().is_some_and(there)
        };
        let process = match self.list.iter().rev().find(knows) {
            Some(image) => Arc::clone(&image.process),
            None => Arc::new(Process {
                snapshot: MappingSnapshot::empty(),
                unreadable: Some(Unreadable::NotRead),
                ..Process::clone(&walked.process)
            }),
        };
        Some((process, true))
    }

    /// The mappings that were known.
    pub(super) fn snapshots(&self) -> impl Iterator<Item = &MappingSnapshot> {
        self.list.iter().map(|image| image.process.snapshot.as_ref())
    }

    fn image_at(&self, at: BootTime) -> Option<&Image> {
        let found = self.list.iter().rev().find(|image| image.from <= at);
        found.or(self.list.front())
    }

    /// Forgets what was replaced before a time, and all but the newest `max`.
    pub(super) fn forget_replaced(&mut self, before: BootTime, max: usize) {
        while self.list.len() > 1
            && (self.list.len() > max || self.list.get(1).is_some_and(|next| next.from < before))
        {
            self.list.pop_front();
        }
    }

    /// How many executable mappings are held.
    pub(super) fn mappings(&self) -> usize {
        self.list.iter().map(|image| image.process.snapshot.mappings().len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::Pid;

    fn names(images: &Images, times: [u64; 4]) -> [String; 4] {
        times.map(|at| images.at(BootTime(at)).unwrap().name.to_string())
    }

    fn process(name: &str) -> Arc<Process> {
        Arc::new(Process { name: name.into(), ..Process::not_read(Pid(1), None) })
    }

    #[test]
    fn each_time_has_its_image() {
        let mut images = Images::default();
        assert!(images.at(BootTime(1)).is_none());
        for (from, name) in [(10, "a"), (20, "b"), (30, "c")] {
            images.push(BootTime(from), from, process(name));
        }
        assert_eq!(names(&images, [0, 19, 20, 99]), ["a", "a", "b", "c"]);
        images.push(BootTime(15), 15, process("d"));
        assert_eq!(names(&images, [0, 14, 15, 99]), ["a", "a", "d", "d"]);
        images.forget_replaced(BootTime(15), 8);
        assert_eq!(names(&images, [0, 14, 15, 99]), ["a", "a", "d", "d"]);
        images.forget_replaced(BootTime(16), 8);
        assert_eq!(names(&images, [0, 14, 15, 99]), ["d", "d", "d", "d"]);
        images.push(BootTime(40), 40, process("e"));
        images.forget_replaced(BootTime(0), 1);
        assert_eq!(names(&images, [0, 14, 15, 99]), ["e", "e", "e", "e"]);
    }

    #[test]
    fn a_stack_belongs_to_the_mappings_that_it_was_walked_with() {
        let mut images = Images::default();
        let (a, b, c) = (process("a"), process("b"), process("c"));
        images.push(BootTime(10), 1, Arc::clone(&a));
        // The same program maps something else, then another one runs.
        images.push(BootTime(20), 1, Arc::clone(&b));
        images.push(BootTime(30), 2, Arc::clone(&c));
        let none = Replaced::default();
        let walked = |at, process: &Process| {
            let epoch = process.snapshot.epoch();
            let (found, stale) = images.walked(BootTime(at), epoch, &[], &none).unwrap();
            (found.snapshot.epoch(), stale)
        };
        let [epoch_a, epoch_b, epoch_c] = [&a, &b, &c].map(|process| process.snapshot.epoch());
        assert_eq!(walked(25, &a), (epoch_a, false));
        assert_eq!(walked(15, &b), (epoch_b, false));
        assert_eq!(walked(35, &c), (epoch_c, false));
        assert_eq!(walked(35, &b), (epoch_c, true));
        assert_eq!(walked(25, &process("parent")), (epoch_b, false));
    }

    #[test]
    fn of_one_time_the_later_image_counts_and_both_are_known() {
        let mut images = Images::default();
        let (inherited, read) = (process("inherited"), process("read"));
        images.push(BootTime(10), 1, Arc::clone(&inherited));
        images.push(BootTime(10), 1, Arc::clone(&read));
        assert_eq!(images.at(BootTime(10)).unwrap().snapshot.epoch(), read.snapshot.epoch());
        let epoch = inherited.snapshot.epoch();
        let found = images.walked(BootTime(11), epoch, &[], &Replaced::default());
        assert_eq!(
            found.map(|(found, stale)| (found.snapshot.epoch(), stale)),
            Some((epoch, false))
        );
    }

    #[test]
    fn what_a_program_says_later_holds_for_its_earlier_mappings() {
        let keys = |keys: &[&str]| keys.iter().map(|key| Arc::from(*key)).collect::<Arc<[_]>>();
        let with = |process: &Process, names| {
            Arc::new(Process { attribute_keys: keys(names), ..process.clone() })
        };
        let mut images = Images::default();
        let (old, early, late) = (process("old"), process("a"), process("a"));
        images.push(BootTime(10), 1, Arc::clone(&old));
        images.push(BootTime(20), 2, Arc::clone(&early));
        images.push(BootTime(30), 2, with(&late, &["span_name"]));
        let (epoch, none) = (early.snapshot.epoch(), Replaced::default());
        let (found, stale) = images.walked(BootTime(25), epoch, &[], &none).unwrap();
        assert_eq!((found.attribute_keys.len(), stale), (1, false));
        assert_eq!(found.snapshot.epoch(), early.snapshot.epoch());
        images.replace_newest(with(&late, &["span_name", "more"]));
        assert_eq!(images.at(BootTime(25)).unwrap().attribute_keys.len(), 2);
        assert_eq!(images.at(BootTime(15)).unwrap().attribute_keys.len(), 0);
    }
}

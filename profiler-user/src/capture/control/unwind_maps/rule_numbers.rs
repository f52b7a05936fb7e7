//! The numbers of unwind rules. Tables share them, and give them back when they go.

use std::collections::HashMap;

use profiler_common::unwind::Rule;

/// Which rule has which number.
#[derive(Debug)]
pub(super) struct RuleNumbers {
    max: usize,
    by_rule: HashMap<Rule, u16>,
    /// By number: the rule, and how many tables have it.
    users: Vec<(Rule, u32)>,
    free: Vec<u16>,
}

impl RuleNumbers {
    /// Numbers below `max`, which is at most 2^16.
    pub(super) fn new(max: usize) -> Self {
        Self { max, by_rule: HashMap::new(), users: Vec::new(), free: Vec::new() }
    }

    /// The number of a rule, which has one user more from now on. `None`: all are taken.
    pub(super) fn take(&mut self, rule: Rule) -> Option<u16> {
        if let Some(number) = self.by_rule.get(&rule).copied() {
            if let Some((_, users)) = self.users.get_mut(usize::from(number)) {
                *users = users.saturating_add(1);
            }
            return Some(number);
        }
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.users.len() < self.max => {
                let number = u16::try_from(self.users.len()).ok()?;
                self.users.push((rule, 0));
                number
            }
            None => return None,
        };
        *self.users.get_mut(usize::from(number))? = (rule, 1);
        self.by_rule.insert(rule, number);
        Some(number)
    }

    /// A user less; the number of a rule without users is given to another one.
    pub(super) fn give_back(&mut self, number: u16) {
        let Some((rule, users)) = self.users.get_mut(usize::from(number)) else { return };
        *users = users.saturating_sub(1);
        if *users == 0 && self.by_rule.remove(rule).is_some() {
            self.free.push(number);
        }
    }

    /// Different rules that have users.
    pub(super) fn len(&self) -> usize {
        self.by_rule.len()
    }
}

#[cfg(test)]
mod tests {
    use profiler_common::unwind::CFA_SP;

    use super::*;

    fn rule(offset: i32) -> Rule {
        Rule { cfa_offset: offset, ..Rule::plain(CFA_SP) }
    }

    #[test]
    fn a_number_is_given_to_another_rule_when_nobody_uses_it() {
        let mut numbers = RuleNumbers::new(2);
        assert_eq!([8, 16, 8].map(|at| numbers.take(rule(at))), [Some(0), Some(1), Some(0)]);
        assert_eq!(numbers.take(rule(24)), None);
        numbers.give_back(0);
        assert_eq!((numbers.take(rule(24)), numbers.len()), (None, 2), "another has it still");
        numbers.give_back(0);
        assert_eq!((numbers.take(rule(24)), numbers.len()), (Some(0), 2));
        assert_eq!([8, 16].map(|at| numbers.take(rule(at))), [None, Some(1)]);
        // What nobody has is not given back twice.
        numbers.give_back(0);
        numbers.give_back(0);
        assert_eq!([8, 24].map(|at| numbers.take(rule(at))), [Some(0), None]);
    }
}

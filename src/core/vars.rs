//! Tracked parameters: what a client wants, what its server has, and the SET that makes them agree
//! (pooling 6).

use crate::base::Objects;
use crate::wire::write;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Names of the tracked parameters, in the order in which they are reported and set.
#[derive(Debug)]
pub struct Tracked {
    names: Vec<Box<str>>,
}

/// A value; shared between the server that reported it and the clients that have it.
pub type Value = Rc<[u8]>;

/// A SET statement's value may take so many bytes, quotes included; longer ones are not applied.
const QUOTED_MAX: usize = 127;

const FIXED: [&str; 5] =
    ["DateStyle", "client_encoding", "TimeZone", "standard_conforming_strings", "application_name"];

/// Place of application_name among the tracked parameters.
pub const APPLICATION_NAME: usize = 4;

impl Tracked {
    /// The fixed parameters and those of `track_extra_parameters`.
    pub fn new(extra: &str) -> Tracked {
        let mut tracked = Tracked { names: FIXED.iter().map(|name| (*name).into()).collect() };
        for name in extra.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            if tracked.find(name.as_bytes()).is_none() && !name.eq_ignore_ascii_case("options") {
                tracked.names.push(name.into());
            }
        }
        tracked
    }

    /// The place of a parameter, whatever its letters' case.
    pub fn find(&self, name: &[u8]) -> Option<usize> {
        self.names.iter().position(|known| known.as_bytes().eq_ignore_ascii_case(name))
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(AsRef::as_ref)
    }

    /// How many parameters are tracked.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Never true: some parameters are always tracked.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }
}

/// The values that one connection has; no value where none is known. Connections with the same
/// values share them: see [`Shared`].
#[derive(Clone, Debug, Default)]
pub struct Vars {
    values: Option<Set>,
}

type Set = Rc<[Option<Value>]>;

impl Vars {
    /// No values yet. Takes memory only when the first one is set.
    pub fn new() -> Vars {
        Vars::default()
    }

    /// The value at a place.
    pub fn get(&self, at: usize) -> Option<&Value> {
        self.values.as_ref()?.get(at)?.as_ref()
    }

    /// Sets the value at a place.
    pub fn set(&mut self, tracked: &Tracked, at: usize, value: Value) {
        let none_yet = || vec![None; tracked.len()].into();
        let values = Rc::make_mut(self.values.get_or_insert_with(none_yet));
        if let Some(slot) = values.get_mut(at) {
            *slot = Some(value);
        }
    }

    /// ParameterStatus packets of the known values, in order.
    pub fn packets(&self, tracked: &Tracked) -> Vec<u8> {
        let mut out = Vec::new();
        for (at, name) in tracked.names().enumerate() {
            if let Some(value) = self.get(at) {
                write::parameter_status(&mut out, name.as_bytes(), value);
            }
        }
        out
    }

    /// True if both are known to have the same values without looking at them.
    #[inline]
    pub fn is_shared_with(&self, other: &Vars) -> bool {
        matches!((&self.values, &other.values), (Some(own), Some(other)) if Rc::ptr_eq(own, other))
    }

    /// Takes values that are not known yet from `other`.
    pub fn fill(&mut self, tracked: &Tracked, other: &Vars) {
        for at in 0..tracked.len() {
            if self.get(at).is_none() {
                if let Some(value) = other.get(at) {
                    self.set(tracked, at, value.clone());
                }
            }
        }
    }

    /// Takes over every value that `other` knows.
    pub fn adopt(&mut self, tracked: &Tracked, other: &Vars) {
        if (0..tracked.len()).all(|at| other.get(at).is_some()) {
            self.values.clone_from(&other.values);
            return;
        }
        for at in 0..tracked.len() {
            if let Some(value) = other.get(at) {
                self.set(tracked, at, value.clone());
            }
        }
    }
}

/// Every set of values that some connection has, once: most connections have the same, and then a
/// pointer tells that a server needs no SET for its client.
#[derive(Default)]
pub struct Shared {
    sets: BTreeSet<Set>,
    /// How many sets there were after the last look for unused ones.
    used: usize,
}

impl Shared {
    /// Has these values stored with whoever else has them.
    pub fn share(&mut self, vars: &mut Vars) {
        let Some(values) = &mut vars.values else { return };
        match self.sets.get(&**values) {
            Some(known) => *values = known.clone(),
            None => {
                self.sets.insert(values.clone());
            }
        }
    }

    /// What the sets take; those that nobody has any more are free.
    pub fn objects(&self, tracked: &Tracked) -> Objects {
        // In front of the values an `Rc` has its two counts.
        let counts = 2 * size_of::<usize>();
        let values = tracked.len().saturating_mul(size_of::<Option<Value>>());
        let used = self.sets.iter().filter(|set| Rc::strong_count(set) > 1).count();
        let free = self.sets.len().saturating_sub(used);
        Objects { size: values.saturating_add(counts), used, free }
    }

    /// Forgets sets that nobody has any more, when there may be many of them.
    pub fn tidy(&mut self) {
        if self.sets.len() > self.used.saturating_mul(2).saturating_add(16) {
            self.sets.retain(|set| Rc::strong_count(set) > 1);
            self.used = self.sets.len();
        }
    }
}

/// Appends the SQL that gives a server the client's values; nothing if they agree already.
/// Comparison ignores case, as the reference does.
pub fn align(sql: &mut Vec<u8>, tracked: &Tracked, client: &Vars, server: &Vars) {
    if client.is_shared_with(server) {
        return;
    }
    for (at, name) in tracked.names().enumerate() {
        let (Some(wanted), Some(has)) = (client.get(at), server.get(at)) else {
            continue;
        };
        if wanted == has || wanted.eq_ignore_ascii_case(has) {
            continue;
        }
        let quoted = if name.eq_ignore_ascii_case("search_path") {
            raw_list(wanted)
        } else {
            match quote(wanted) {
                quoted if quoted.len() > QUOTED_MAX => continue,
                quoted => quoted,
            }
        };
        sql.extend_from_slice(b"SET ");
        sql.extend_from_slice(name.as_bytes());
        sql.push(b'=');
        sql.extend_from_slice(&quoted);
        sql.push(b';');
    }
}

/// A literal as PostgreSQL reads it, whatever standard_conforming_strings says.
fn quote(value: &[u8]) -> Vec<u8> {
    let mut quoted = Vec::with_capacity(value.len() + 3);
    if value.contains(&b'\\') {
        quoted.push(b'E');
    }
    quoted.push(b'\'');
    for byte in value {
        if matches!(byte, b'\'' | b'\\') {
            quoted.push(*byte);
        }
        quoted.push(*byte);
    }
    quoted.push(b'\'');
    quoted
}

/// The reported search_path is a list of names already; only the empty one needs other quotes.
fn raw_list(value: &[u8]) -> Vec<u8> {
    if value == b"\"\"" {
        b"''".to_vec()
    } else {
        value.to_vec()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vars(tracked: &Tracked, pairs: &[(&str, &str)]) -> Vars {
        let mut vars = Vars::new();
        for (name, value) in pairs {
            let at = tracked.find(name.as_bytes()).unwrap();
            vars.set(tracked, at, value.as_bytes().into());
        }
        vars
    }

    fn sql(client: &[(&str, &str)], server: &[(&str, &str)]) -> String {
        let tracked = Tracked::new("IntervalStyle, search_path,datestyle");
        let mut sql = Vec::new();
        align(&mut sql, &tracked, &vars(&tracked, client), &vars(&tracked, server));
        String::from_utf8(sql).unwrap()
    }

    #[test]
    fn extra_names_are_added_once() {
        let tracked = Tracked::new(" IntervalStyle ,datestyle,, options");
        assert_eq!(tracked.len(), 6);
        assert_eq!(tracked.find(b"INTERVALSTYLE"), Some(5));
    }

    #[test]
    fn equal_values_are_stored_once_and_unused_ones_forgotten() {
        let tracked = Tracked::new("IntervalStyle");
        let mut shared = Shared::default();
        let mut one = vars(&tracked, &[("TimeZone", "UTC"), ("application_name", "a")]);
        let mut two = vars(&tracked, &[("application_name", "a"), ("TimeZone", "UTC")]);
        assert!(!one.is_shared_with(&two));
        shared.share(&mut one);
        shared.share(&mut two);
        assert!(one.is_shared_with(&two));
        two.set(&tracked, APPLICATION_NAME, b"b"[..].into());
        shared.share(&mut two);
        assert_eq!(one.get(APPLICATION_NAME).map(|name| &**name), Some(&b"a"[..]));
        assert!(!one.is_shared_with(&two));
        for number in 0..100 {
            let name = number.to_string();
            shared.share(&mut vars(&tracked, &[("application_name", &name)]));
        }
        assert_eq!(shared.sets.len(), 102);
        shared.tidy();
        assert_eq!(shared.sets.len(), 2);
    }

    #[test]
    fn only_differences_of_known_values_are_set() {
        let long = "x".repeat(126);
        for (client, server, want) in [
            (vec![("TimeZone", "UTC")], vec![("TimeZone", "utc")], ""),
            (vec![("TimeZone", "UTC")], vec![], ""),
            (vec![], vec![("TimeZone", "UTC")], ""),
            (
                vec![("application_name", ""), ("DateStyle", "german")],
                vec![("application_name", "a"), ("DateStyle", "ISO")],
                "SET DateStyle='german';SET application_name='';",
            ),
            (vec![("TimeZone", "a'b\\c")], vec![("TimeZone", "x")], "SET TimeZone=E'a''b\\\\c';"),
            (vec![("application_name", &long)], vec![("application_name", "x")], ""),
            (vec![("search_path", "\"\"")], vec![("search_path", "a")], "SET search_path='';"),
            (vec![("search_path", "a, b")], vec![("search_path", "a")], "SET search_path=a, b;"),
        ] {
            assert_eq!(sql(&client, &server), want);
        }
    }
}

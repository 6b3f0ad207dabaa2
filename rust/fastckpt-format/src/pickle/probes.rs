//! Dicts and sets that take time quadratic in their length to build: refused before Python builds one.
//!
//! Python looks a key up by its hash: where other keys lie in its place, it probes the next one.
//! The keys of a hostile file can be chosen so that each probes all that were there before, either
//! with one hash for all or along a chain of places. So the probes are counted, in tables that grow
//! as Python's do.

use std::mem;

use super::error::PickleError;
use super::graph::{Graph, Node, NodeId};
use super::hashes::Hashes;
use super::names;

/// Fewer keys cannot take more probes than are free. Nearly all dicts are left out so.
const MIN_KEYS: usize = 128;
/// Probes for each key. Distinct numbers take two; those with many zeros at the end a dozen, and in a
/// set, where neighbours are looked at first, ten times as many. Of tuples of small numbers some have
/// one hash, as -1 and -2 have.
const PROBES_PER_KEY: u64 = 128;
/// Probes on top: a few hundred keys of one hash do no harm.
const FREE_PROBES: u64 = 1 << 14;

/// Elements of a set that are looked at in a row (`LINEAR_PROBES` of `Objects/setobject.c`).
const NEIGHBOURS: u64 = 9;
/// Bits of the hash that come in with each probe (`PERTURB_SHIFT`).
const PERTURB_SHIFT: u32 = 5;
/// The smallest table of both.
const MIN_SLOTS: u64 = 8;
/// A set of more elements doubles, a smaller one grows fourfold.
const LARGE_SET: usize = 50_000;

/// Refuses a graph with a dict or set whose keys take too many probes, whether or not the result
/// contains it: torch's unpickler builds it all the same.
pub(super) fn check(graph: &Graph) -> Result<(), PickleError> {
    let mut hashes = Hashes::new(graph);
    let ids = (0..).map(NodeId);
    for (node, id) in graph.nodes.iter().zip(ids) {
        let (kind, keys) = match node {
            Node::Dict(items) | Node::OrderedDict { items, .. } => (Kind::Dict, keys_of(items)),
            Node::Counter(counter) => (Kind::Dict, keys_of(&counter.items)),
            Node::Set(items) if items.len() >= MIN_KEYS => (Kind::Set, items.to_vec()),
            _ => continue,
        };
        if keys.len() < MIN_KEYS || keys.iter().all(|key| is_secret(graph, *key)) {
            continue;
        }
        let entries: Vec<_> = keys.iter().map(|key| (*key, hashes.of(*key))).collect();
        let limit = (keys.len() as u64)
            .saturating_mul(PROBES_PER_KEY)
            .saturating_add(FREE_PROBES);
        if !is_built_within(limit, kind, &entries) {
            return Err(PickleError::Collisions {
                what: node.kind(),
                place: names::place_of(graph, id)
                    .map_or_else(String::new, |name| format!(" at {name}")),
                keys: keys.len(),
                limit,
            });
        }
    }
    Ok(())
}

fn keys_of(items: &[(NodeId, NodeId)]) -> Vec<NodeId> {
    if items.len() < MIN_KEYS {
        return Vec::new();
    }
    items.iter().map(|(key, _)| *key).collect()
}

/// Whether nobody can choose the hash.
fn is_secret(graph: &Graph, key: NodeId) -> bool {
    matches!(graph.node(key), Node::Text(_) | Node::Bytes(_))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dict,
    Set,
}

fn is_built_within(limit: u64, kind: Kind, keys: &[(NodeId, u64)]) -> bool {
    let mut grown = Table::new(kind, MIN_SLOTS, limit);
    if !grown.add_all(keys) {
        return false;
    }
    // A copy is made as large as it has to be, and no larger.
    let entries = mem::take(&mut grown.entries);
    let fitting = slots_for((entries.len() as u64).saturating_mul(3) / 2);
    kind == Kind::Set
        || fitting == grown.slots.len() as u64
        || Table::new(kind, fitting, limit).add_all(&entries)
}

fn slots_for(least: u64) -> u64 {
    least.max(MIN_SLOTS).next_power_of_two()
}

/// A hash table as Python's: `Objects/dictobject.c` and `Objects/setobject.c`, 3.7 to 3.14.
struct Table {
    kind: Kind,
    /// Numbers of entries, from 1 on; 0 is nothing.
    slots: Vec<u32>,
    entries: Vec<(NodeId, u64)>,
    probes_left: u64,
}

/// What is found in the place of a key.
enum Found {
    Slot(usize),
    /// The same object is there already.
    Same,
    /// There are no probes left.
    Nothing,
}

impl Table {
    fn new(kind: Kind, slots: u64, probes: u64) -> Self {
        Self {
            kind,
            slots: vec![0; usize::try_from(slots).unwrap_or(usize::MAX)],
            entries: Vec::new(),
            probes_left: probes,
        }
    }

    /// Adds keys; says whether there were enough probes for that.
    fn add_all(&mut self, keys: &[(NodeId, u64)]) -> bool {
        keys.iter().all(|key| {
            if self.kind == Kind::Dict && self.is_full() && !self.grow() {
                return false;
            }
            match self.find(*key) {
                Found::Slot(at) => {
                    self.entries.push(*key);
                    self.take(at, self.entries.len());
                    self.kind == Kind::Dict || !self.is_full() || self.grow()
                }
                Found::Same => true,
                Found::Nothing => false,
            }
        })
    }

    fn find(&mut self, (node, hash): (NodeId, u64)) -> Found {
        let mask = (self.slots.len() as u64).saturating_sub(1);
        let mut at = hash & mask;
        let mut perturb = hash;
        loop {
            let neighbours = match self.kind {
                Kind::Set if at.saturating_add(NEIGHBOURS) <= mask => NEIGHBOURS,
                _ => 0,
            };
            for at in at..=at.saturating_add(neighbours) {
                let at = usize::try_from(at).unwrap_or(usize::MAX);
                match self.slots.get(at) {
                    Some(0) => return Found::Slot(at),
                    Some(number) if self.is_entry(*number, node) => return Found::Same,
                    _ => {}
                }
                let Some(left) = self.probes_left.checked_sub(1) else {
                    return Found::Nothing;
                };
                self.probes_left = left;
            }
            perturb >>= PERTURB_SHIFT;
            at = at.wrapping_mul(5).wrapping_add(perturb).wrapping_add(1) & mask;
        }
    }

    fn is_entry(&self, number: u32, node: NodeId) -> bool {
        let entry = self.entries.get((number as usize).saturating_sub(1));
        entry.is_some_and(|(known, _)| *known == node)
    }

    fn take(&mut self, at: usize, number: usize) {
        if let Some(slot) = self.slots.get_mut(at) {
            // There are no more keys than nodes, which have 32 bits.
            *slot = u32::try_from(number).unwrap_or(u32::MAX);
        }
    }

    /// Whether a dict takes no more, or a set is to grow.
    fn is_full(&self) -> bool {
        let (used, slots) = (self.entries.len(), self.slots.len());
        match self.kind {
            Kind::Dict => used >= slots.saturating_mul(2) / 3,
            Kind::Set => used.saturating_mul(5) >= slots.saturating_sub(1).saturating_mul(3),
        }
    }

    /// Makes the table larger, and places all entries anew.
    fn grow(&mut self) -> bool {
        let used = self.entries.len() as u64;
        let slots = match self.kind {
            Kind::Dict => slots_for(used.saturating_mul(3)),
            Kind::Set if self.entries.len() > LARGE_SET => {
                slots_for(used.saturating_mul(2).saturating_add(1))
            }
            Kind::Set => slots_for(used.saturating_mul(4).saturating_add(1)),
        };
        self.slots = vec![0; usize::try_from(slots).unwrap_or(usize::MAX)];
        let entries = mem::take(&mut self.entries);
        let placed = (1..).zip(&entries).all(|(number, entry)| {
            let found = self.find(*entry);
            if let Found::Slot(at) = found {
                self.take(at, number);
            }
            matches!(found, Found::Slot(_))
        });
        self.entries = entries;
        placed
    }
}

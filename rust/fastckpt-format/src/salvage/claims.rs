//! What the structures that are left claim together: at this place lies a record of this size.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::chain::Archive;
use super::layout::{below, likeliest_alignment, likeliest_root, strip};
use super::listing::Listing;
use super::traces::{Central, Descriptor, Local, Traces};
use crate::canonical::Placed;
use crate::layout::Alignment;

/// A record that may lie at a place: what its local header and the directory say of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) header_offset: u64,
    pub(super) payload_offset: u64,
    /// `None` where nothing says how long it is.
    pub(super) nbytes: Option<u64>,
    /// Name in the local header, without the root folder.
    pub(super) header_name: Option<String>,
    /// Name in the directory, without the root folder.
    pub(super) listed_name: Option<String>,
    /// CRC in the directory.
    pub(super) listed_crc32: Option<u32>,
    /// CRC in the data descriptor, or in the local header.
    pub(super) header_crc32: Option<u32>,
}

impl Claim {
    /// How much speaks for it: a header and the directory, a header alone, the directory alone.
    fn strength(&self) -> u8 {
        match (&self.header_name, &self.listed_name) {
            (Some(header), Some(listed)) if header == listed => 3,
            (Some(_), _) => 2,
            (None, _) => 1,
        }
    }

    /// Whether header and directory agree on its name.
    pub(super) fn has_two_witnesses(&self) -> bool {
        self.strength() == 3
    }

    /// Whether the directory says nothing of it.
    pub(super) fn is_unlisted(&self) -> bool {
        self.listed_crc32.is_none()
    }

    /// Where its payload ends; where that begins, if its size is unknown.
    pub(super) fn end(&self) -> u64 {
        self.payload_offset.saturating_add(self.nbytes.unwrap_or(0))
    }

    /// What it is called in messages.
    pub(super) fn any_name(&self) -> &str {
        let name = self.listed_name.as_ref().or(self.header_name.as_ref());
        name.map_or("", String::as_str)
    }
}

/// The claims of a file.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    pub(super) root: String,
    /// Apart from each other, in file order.
    pub(super) claims: Vec<Claim>,
    /// What cannot be a record, each with the reason.
    pub(super) rejected: Vec<(Claim, &'static str)>,
}

/// Puts the structures of a file together. `sizes` are those of storages by their keys, as far as
/// data.pkl says them.
pub(super) fn assemble(
    traces: &Traces,
    file_nbytes: u64,
    sizes: &HashMap<String, u64>,
) -> Assembly {
    let root = likeliest_root(traces);
    let builder = Builder::new(traces, &root, file_nbytes);
    let mut assembly = Assembly::default();
    for claim in builder.claims() {
        match builder.problem(&claim) {
            None => assembly.claims.push(claim),
            Some(reason) => assembly.rejected.push((claim, reason)),
        }
    }
    assembly.keep_apart();
    if !builder.has_whole_directory {
        let archive = Archive {
            root: &root,
            alignment: builder.alignment,
            sizes,
        };
        let offsets = archive.chained(&assembly.claims);
        assembly.keep_chained(&offsets);
    }
    assembly
        .rejected
        .sort_by_key(|(claim, _)| claim.header_offset);
    assembly.root = root;
    assembly
}

impl Assembly {
    /// Drops claims until the rest lie apart: where two overlap, the stronger stays, else the first.
    fn keep_apart(&mut self) {
        let mut claims = std::mem::take(&mut self.claims);
        claims.sort_by_key(|claim| {
            (
                u8::MAX.saturating_sub(claim.strength()),
                claim.header_offset,
            )
        });
        let mut taken: BTreeMap<u64, u64> = BTreeMap::new();
        for claim in claims {
            let before = taken.range(..claim.end()).next_back();
            if before.is_some_and(|(_, end)| *end > claim.header_offset) {
                self.rejected.push((claim, "it overlaps another record"));
            } else {
                taken.insert(claim.header_offset, claim.end());
                self.claims.push(claim);
            }
        }
        self.claims.sort_by_key(|claim| claim.header_offset);
        // A tensor may hold an archive: the headers inside it, and the directory whose offsets are
        // counted from there, are not those of records.
        self.rejected.retain(|(claim, _)| {
            let before = taken.range(..=claim.header_offset).next_back();
            let is_inside = before.is_some_and(|(_, end)| *end > claim.header_offset);
            !is_inside || claim.has_two_witnesses()
        });
    }

    /// Drops what neither the directory lists nor the records before it lead to: it may lie inside a
    /// tensor that holds an archive, and that has lost its own header.
    fn keep_chained(&mut self, offsets: &HashSet<u64>) {
        let is_kept =
            |claim: &Claim| !claim.is_unlisted() || offsets.contains(&claim.header_offset);
        let claims = std::mem::take(&mut self.claims);
        let (kept, dropped) = claims.into_iter().partition(is_kept);
        self.claims = kept;
        let dropped: Vec<Claim> = dropped;
        let reason =
            "the directory is lost, and what lies before it too, so it may be part of a tensor";
        self.rejected
            .extend(dropped.into_iter().map(|claim| (claim, reason)));
    }
}

/// Makes the claims of a file whose records lie in one folder.
struct Builder<'a> {
    root: &'a str,
    file_nbytes: u64,
    locals: Vec<&'a Local>,
    /// By header offset, the last first: a directory lies behind all records.
    centrals: HashMap<u64, Vec<&'a Central>>,
    has_whole_directory: bool,
    /// Where a structure begins, or the file ends: what may follow an empty record.
    boundaries: HashSet<u64>,
    alignment: Alignment,
    /// Whether headers are padded as torch pads them.
    is_torch: bool,
}

impl<'a> Builder<'a> {
    fn new(traces: &'a Traces, root: &'a str, file_nbytes: u64) -> Self {
        let listing = Listing::new(traces, root, file_nbytes);
        let centrals = listing.by_place(traces);
        // A header of another folder counts where the directory knows a record there.
        let is_ours = |local: &&Local| {
            strip(root, &local.name).is_some() || centrals.contains_key(&local.header_offset)
        };
        let locals: Vec<&Local> = traces.locals.iter().filter(is_ours).collect();
        let headers = traces.locals.iter().map(|local| local.header_offset);
        let listed = traces.centrals.iter().map(|central| central.offset);
        let boundaries = headers.chain(listed).chain([file_nbytes]).collect();
        let (alignment, is_torch) = likeliest_alignment(root, &locals, &listing.entries);
        Self {
            root,
            file_nbytes,
            locals,
            centrals,
            has_whole_directory: listing.is_whole,
            boundaries,
            alignment,
            is_torch,
        }
    }

    fn claims(&self) -> Vec<Claim> {
        let mut claims: Vec<Claim> = self.locals.iter().map(|local| self.at(local)).collect();
        let headers: HashSet<u64> = self
            .locals
            .iter()
            .map(|local| local.header_offset)
            .collect();
        for (offset, centrals) in &self.centrals {
            if !headers.contains(offset) {
                claims.extend(centrals.first().map(|central| self.listed(central)));
            }
        }
        claims.sort_by_key(|claim| claim.header_offset);
        claims
    }

    /// The claim of a local header and what the directory says of the same place.
    fn at(&self, local: &Local) -> Claim {
        let central = self.central_for(local);
        let mut claim = Claim {
            header_offset: local.header_offset,
            payload_offset: local.payload_offset,
            nbytes: None,
            header_name: strip(self.root, &local.name).map(str::to_owned),
            listed_name: None,
            listed_crc32: None,
            header_crc32: None,
        };
        let Some(central) = central else {
            let sized = self.size_by_itself(local);
            claim.nbytes = sized.map(|sized| sized.nbytes);
            claim.header_crc32 = sized.map(|sized| sized.crc32);
            return claim;
        };
        claim.listed_name = strip(self.root, &central.name).map(str::to_owned);
        claim.listed_crc32 = Some(central.crc32);
        let has_size = |stated: &&Descriptor| stated.nbytes == central.nbytes;
        let confirmed = local.descriptors.iter().chain(&local.stated).find(has_size);
        let place = self.place(central, local.header_offset);
        let is_damaged = place.is_some_and(|place| place != local.payload_offset);
        // Where the two contradict each other on the size, a descriptor is in its place; whose the
        // record is that it belongs to is another question, for the CRC that the directory has.
        let other = local.descriptors.first().filter(|_| !is_damaged);
        let sized = confirmed.or(other).copied();
        if let (None, Some(place)) = (sized, place) {
            // Nothing confirms the lengths in the header: torch's padding follows from the name.
            claim.payload_offset = place;
        }
        claim.nbytes = Some(sized.map_or(central.nbytes, |sized| sized.nbytes));
        claim.header_crc32 = sized.map(|sized| sized.crc32);
        claim
    }

    /// What the directory says of the record with this header.
    fn central_for(&self, local: &Local) -> Option<&'a Central> {
        let centrals = self.centrals.get(&local.header_offset)?;
        let same_name = centrals.iter().find(|central| central.name == local.name);
        same_name.or(centrals.first()).copied()
    }

    /// The size of a record that the directory does not list.
    fn size_by_itself(&self, local: &Local) -> Option<Descriptor> {
        let ends_at_boundary = |descriptor: &&Descriptor| {
            let end = local.payload_offset.saturating_add(descriptor.nbytes);
            [0, 12, 16, 20, 24]
                .iter()
                .any(|nbytes| self.boundaries.contains(&end.saturating_add(*nbytes)))
        };
        let descriptors = &local.descriptors;
        let followed = descriptors.iter().find(ends_at_boundary);
        // No byte of an empty record can vouch for it, but what follows can.
        let is_sound = |stated: &&Descriptor| stated.nbytes > 0 || ends_at_boundary(stated);
        let stated = local.stated.as_ref().filter(is_sound);
        followed.or(descriptors.first()).or(stated).copied()
    }

    /// The claim of the directory alone: the header is not there any more.
    fn listed(&self, central: &Central) -> Claim {
        Claim {
            header_offset: central.header_offset,
            // Without torch's padding nothing says where it begins, and it ends nowhere.
            payload_offset: self
                .place(central, central.header_offset)
                .unwrap_or(u64::MAX),
            nbytes: Some(central.nbytes),
            header_name: None,
            listed_name: strip(self.root, &central.name).map(str::to_owned),
            listed_crc32: Some(central.crc32),
            header_crc32: None,
        }
    }

    /// Where torch puts the payload of a record; `None` where another tool wrote the file.
    fn place(&self, central: &Central, header_offset: u64) -> Option<u64> {
        let placed = Placed {
            root: self.root,
            name: below(self.root, &central.name)?,
            nbytes: central.nbytes,
            header_offset,
        };
        self.is_torch
            .then(|| placed.payload_offset(self.alignment))?
    }

    fn problem(&self, claim: &Claim) -> Option<&'static str> {
        match claim.nbytes {
            _ if claim.is_unlisted() && self.has_whole_directory => {
                Some("the directory does not list it")
            }
            None => Some("nothing is left that says how long it is"),
            // A part of a directory may be that of an archive inside a tensor.
            Some(_) if claim.header_name.is_none() && !self.has_whole_directory => {
                Some("its local header is damaged, and the directory too")
            }
            // No byte of it can vouch for it: an entry that was zeroed says that a record is empty.
            Some(0) if claim.header_crc32 != Some(0) => Some("whether it is empty is not certain"),
            Some(_) if claim.payload_offset == u64::MAX => Some("its local header is damaged"),
            Some(_) if claim.end() > self.file_nbytes => Some("the file ends before its end"),
            Some(_) => None,
        }
    }
}

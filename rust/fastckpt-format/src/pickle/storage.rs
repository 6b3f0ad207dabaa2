//! Persistent ids: the references from the pickle to the storages.

use super::StorageIds;
use super::dtype::Dtype;
use super::error::PickleError;
use super::global::Known;
use super::graph::{Node, NodeId, StorageId, StorageRef};
use super::machine::Decoder;

/// A persistent id that has the right shape, still without a copy of its texts.
struct Named<'a> {
    key: &'a str,
    location: &'a str,
    dtype: Option<Dtype>,
    numel: u64,
    nbytes: u64,
    view: Option<View<'a>>,
}

/// A part of a storage that has a key of its own.
struct View<'a> {
    key: &'a str,
    offset: u64,
    numel: u64,
    nbytes: u64,
}

impl Named<'_> {
    fn is_same_as(&self, other: &StorageRef) -> bool {
        other.location == self.location && other.dtype == self.dtype && other.numel == self.numel
    }
}

impl<'a> Decoder<'a> {
    /// `BINPERSID`: the same storage object whenever a key comes again.
    #[inline(never)]
    pub(super) fn persistent_id(&mut self) -> Result<(), PickleError> {
        let id = self.pop()?;
        let named = self
            .named_storage(id)
            .map_err(|problem| self.bad_id(problem))?;
        let storage = self.storage(&named)?;
        let node = match &named.view {
            None => storage,
            Some(view) => self.view(&named, view)?,
        };
        self.push_existing(node)
    }

    fn storage(&mut self, named: &Named<'a>) -> Result<NodeId, PickleError> {
        if self.view_ids.contains_key(named.key.as_bytes()) {
            return Err(self.bad_id("storage key is that of a view"));
        }
        let first = self.storage_ids.get(named.key.as_bytes()).copied();
        if let Some((storage, node)) = first {
            let seen = self.storages.get(storage.index());
            if seen.is_some_and(|seen| named.is_same_as(seen)) {
                return Ok(node);
            }
            // torch decides what that means, and versions of it differ.
            let key = named.key;
            self.leave(|| format!("storage {key:?} described in two ways"));
        }
        self.charge(named.key.len().saturating_add(named.location.len()))?;
        let made = self.add_storage(StorageRef {
            key: named.key.to_owned(),
            location: named.location.to_owned(),
            dtype: named.dtype,
            numel: named.numel,
            nbytes: named.nbytes,
            view_offset: None,
        });
        if first.is_none() {
            self.storage_ids.insert(named.key.as_bytes(), made);
        }
        Ok(made.1)
    }

    /// The storage object of a part of another, which only torch can make.
    fn view(&mut self, named: &Named<'a>, view: &View<'a>) -> Result<NodeId, PickleError> {
        let key = view.key.as_bytes();
        if self.storage_ids.contains_key(key) {
            return Err(self.bad_id("view has the key of a storage"));
        }
        if let Some((storage, node)) = self.view_ids.get(key).copied() {
            let seen = self.storages.get(storage.index());
            let is_same = seen.is_some_and(|seen| {
                seen.key == named.key
                    && seen.dtype == named.dtype
                    && seen.view_offset == Some(view.offset)
                    && seen.numel == view.numel
            });
            return if is_same {
                Ok(node)
            } else {
                Err(self.bad_id("view was described in another way before"))
            };
        }
        self.leave(|| "a view of a storage".to_owned());
        self.charge(named.key.len().saturating_add(named.location.len()))?;
        let made = self.add_storage(StorageRef {
            key: named.key.to_owned(),
            location: named.location.to_owned(),
            dtype: named.dtype,
            numel: view.numel,
            nbytes: view.nbytes,
            view_offset: Some(view.offset),
        });
        self.view_ids.insert(key, made);
        Ok(made.1)
    }

    fn add_storage(&mut self, storage: StorageRef) -> (StorageId, NodeId) {
        let id = StorageId(u32::try_from(self.storages.len()).unwrap_or(u32::MAX));
        self.storages.push(storage);
        (id, self.add(Node::Storage(id)))
    }

    fn bad_id(&self, problem: &'static str) -> PickleError {
        let offset = self.cursor.offset;
        PickleError::PersistentId { offset, problem }
    }

    fn named_storage(&self, id: NodeId) -> Result<Named<'a>, &'static str> {
        let Node::Tuple(items) = self.node(id) else {
            return Err("type is not tuple");
        };
        let (parts, view) = match (self.ids, &**items) {
            (StorageIds::Archive, parts) if parts.len() == 5 => (parts, None),
            (StorageIds::Archive, _) => return Err("length is not 5"),
            (StorageIds::Legacy, [kind, ..]) if self.text_of(*kind) != Some(b"storage") => {
                return Err("first item is not 'storage'");
            }
            (StorageIds::Legacy, [parts @ .., view]) if parts.len() == 5 => (parts, Some(*view)),
            (StorageIds::Legacy, _) => return Err("length is not 6"),
        };
        let [kind, class, key, location, numel] = *parts else {
            return Err("length is not 5");
        };
        if self.text_of(kind) != Some(b"storage") {
            return Err("first item is not 'storage'");
        }
        let dtype = self.storage_class(class)?;
        let key = self.plain_text(key).ok_or("storage key is not a str")?;
        let location = self.plain_text(location).ok_or("location is not a str")?;
        let numel = self.count(numel)?;
        let itemsize = dtype.map_or(1, Dtype::itemsize);
        let nbytes = numel
            .checked_mul(itemsize)
            .filter(|nbytes| i64::try_from(*nbytes).is_ok())
            .ok_or("byte count is beyond 63 bits")?;
        let view = match view {
            None => None,
            Some(view) => self.named_view(view, numel, itemsize)?,
        };
        Ok(Named {
            key,
            location,
            dtype,
            numel,
            nbytes,
            view,
        })
    }

    /// The part of a storage of `numel` elements that the last part of an id is about.
    fn named_view(
        &self,
        id: NodeId,
        numel: u64,
        itemsize: u64,
    ) -> Result<Option<View<'a>>, &'static str> {
        const OUTSIDE: &str = "view lies outside its storage";
        let items = match self.node(id) {
            Node::None => return Ok(None),
            Node::Tuple(items) => items,
            _ => return Err("view is not a tuple"),
        };
        let [key, offset, size] = **items else {
            return Err("view has not 3 items");
        };
        let key = self.plain_text(key).ok_or("view key is not a str")?;
        let (offset, size) = (self.count(offset)?, self.count(size)?);
        let end = offset.checked_add(size).ok_or(OUTSIDE)?;
        if end > numel {
            return Err(OUTSIDE);
        }
        Ok(Some(View {
            key,
            offset,
            numel: size,
            nbytes: size.checked_mul(itemsize).ok_or(OUTSIDE)?,
        }))
    }

    fn count(&self, id: NodeId) -> Result<u64, &'static str> {
        let Node::Int(count) = self.node(id) else {
            return Err("element count is not an int of 64 bits");
        };
        u64::try_from(*count).map_err(|_negative| "element count is negative")
    }

    /// The element type of a storage class, `None` for the untyped one.
    fn storage_class(&self, class: NodeId) -> Result<Option<Dtype>, &'static str> {
        const NOT_A_CLASS: &str = "second item is not a storage class";
        let Node::Global(global) = self.node(class) else {
            return Err(NOT_A_CLASS);
        };
        match global.known {
            Some(Known::StorageClass(dtype)) => Ok(Some(dtype)),
            Some(Known::UntypedStorage) => Ok(None),
            // A class of its own for GPU storages, which torch still accepts and no longer
            // writes; the global itself is outside.
            None if global.module() == "torch.cuda" => {
                let dtype = Dtype::from_storage_class(global.name());
                dtype.map(Some).ok_or(NOT_A_CLASS)
            }
            _ => Err(NOT_A_CLASS),
        }
    }

    /// A str without lone surrogates.
    fn plain_text(&self, id: NodeId) -> Option<&'a str> {
        std::str::from_utf8(self.text_of(id)?).ok()
    }
}

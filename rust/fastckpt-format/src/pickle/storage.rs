//! Persistent ids: the references from the pickle to the storages.

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
        let offset = self.cursor.offset;
        let named = self
            .named_storage(id)
            .map_err(|problem| PickleError::PersistentId { offset, problem })?;
        let first = self.storage_ids.get(named.key.as_bytes()).copied();
        if let Some((storage, node)) = first {
            let seen = self.storages.get(storage.index());
            if seen.is_some_and(|seen| named.is_same_as(seen)) {
                return self.push_existing(node);
            }
            // torch decides what that means, and versions of it differ.
            let key = named.key;
            self.leave(|| format!("storage {key:?} described in two ways"));
        }
        self.charge(named.key.len().saturating_add(named.location.len()))?;
        let storage = StorageId(u32::try_from(self.storages.len()).unwrap_or(u32::MAX));
        self.storages.push(StorageRef {
            key: named.key.to_owned(),
            location: named.location.to_owned(),
            dtype: named.dtype,
            numel: named.numel,
            nbytes: named.nbytes,
        });
        let node = self.push(Node::Storage(storage));
        if first.is_none() {
            self.storage_ids
                .insert(named.key.as_bytes(), (storage, node));
        }
        Ok(())
    }

    fn named_storage(&self, id: NodeId) -> Result<Named<'a>, &'static str> {
        let Node::Tuple(items) = self.node(id) else {
            return Err("type is not tuple");
        };
        let [kind, class, key, location, numel] = **items else {
            return Err("length is not 5");
        };
        if self.text_of(kind) != Some(b"storage") {
            return Err("first item is not 'storage'");
        }
        let dtype = self.storage_class(class)?;
        let key = self.plain_text(key).ok_or("storage key is not a str")?;
        let location = self.plain_text(location).ok_or("location is not a str")?;
        let Node::Int(numel) = self.node(numel) else {
            return Err("element count is not an int of 64 bits");
        };
        let Ok(numel) = u64::try_from(*numel) else {
            return Err("element count is negative");
        };
        let nbytes = numel
            .checked_mul(dtype.map_or(1, Dtype::itemsize))
            .filter(|nbytes| i64::try_from(*nbytes).is_ok())
            .ok_or("byte count is beyond 63 bits")?;
        Ok(Named {
            key,
            location,
            dtype,
            numel,
            nbytes,
        })
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

//! Other shards: `mesh` has the lanes between them, `mirrors` the sessions whose home is another shard.

pub(in crate::shard) mod links;
pub mod mesh;
pub(in crate::shard) mod mirrors;

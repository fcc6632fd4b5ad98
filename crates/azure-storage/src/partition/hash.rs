//! The hash that spreads instances over control queues.

use taskhub_core::{InstanceId, PartitionId};

/// Source: Azure/durabletask, `Fnv1aHashHelper.FnvOffsetBasis`.
const OFFSET_BASIS: u32 = 0x811c_9dc5;
/// Source: Azure/durabletask, `Fnv1aHashHelper.FnvPrime`.
const PRIME: u32 = 0x0100_0193;

/// FNV-1a of 32 bits.
pub fn fnv1a32(bytes: &[u8]) -> u32 {
    bytes.iter().fold(OFFSET_BASIS, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(PRIME))
}

/// The partition of an instance: the hash of its raw id in UTF-8, case-sensitive and not escaped, modulo
/// the hub's partition count. A count of 0 counts as 1.
/// Source: Azure/durabletask, `AzureStorageOrchestrationService.GetControlQueueAsync`.
pub fn partition_of(instance: &InstanceId, partition_count: u32) -> PartitionId {
    PartitionId(fnv1a32(instance.as_str().as_bytes()) % partition_count.max(1))
}

/// Lease id with which all workers of one application share the app lease.
/// Source: Azure/durabletask, `AppLeaseManager`.
pub fn app_lease_id(app_name: &str) -> String {
    format!("{:08x}-0000-0000-0000-000000000000", fnv1a32(app_name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_of_one_application_share_a_lease_id() {
        assert_eq!(app_lease_id("myapp"), "1312a8a6-0000-0000-0000-000000000000");
        assert_eq!(app_lease_id(""), "811c9dc5-0000-0000-0000-000000000000");
    }

    #[test]
    fn instance_ids_land_on_the_partition_dtfx_picks() {
        let vectors: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/vectors/partition-hash.json")).unwrap();
        let vectors = vectors["vectors"].as_array().unwrap();
        assert!(vectors.len() >= 26);
        for vector in vectors {
            let id = vector["instance_id"].as_str().unwrap();
            assert_eq!(u64::from(fnv1a32(id.as_bytes())), vector["fnv1a32"].as_u64().unwrap(), "{id}");
            for (count, partition) in vector["partition"].as_object().unwrap() {
                let actual = partition_of(&InstanceId::new(id), count.parse().unwrap());
                assert_eq!(u64::from(actual.0), partition.as_u64().unwrap(), "{id} of {count}");
            }
        }
    }
}

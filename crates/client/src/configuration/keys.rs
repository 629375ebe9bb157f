//! The configuration keys of RBD 16.2: their defaults, the values that they take, and where they can be set.
//!
//! Nearly all of them tune RBD's client and have no effect here. They are kept so that programs that set them
//! read them again.

use super::value::Kind::{self, Bytes, Choice, Features, Flag, Float, Integer, PowerOfTwo, Text};

/// Where a key can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
    /// For an image, a pool, or all pools.
    Image,
    /// For a pool or all pools.
    Pool,
    /// For all pools only.
    Global,
}

use Scope::{Global, Image, Pool};

/// A configuration key.
#[derive(Debug, Clone, Copy)]
pub struct ConfigKey {
    /// Its name without the prefix `rbd_`.
    stem: &'static str,
    /// Where it can be set.
    pub scope: Scope,
    /// The values that it takes.
    pub kind: Kind,
    /// Its value where nobody sets it.
    pub default: &'static str,
}

/// What all names of keys begin with.
const PREFIX: &str = "rbd_";

impl ConfigKey {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{PREFIX}{}", self.stem)
    }

    /// The key with a name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        let stem = name.strip_prefix(PREFIX)?;
        KEYS.iter().find(|key| key.stem == stem)
    }

    /// The keys that can be set for `scope`, by name.
    pub fn all(scope: Scope) -> impl Iterator<Item = &'static Self> {
        KEYS.iter().filter(move |key| key.scope <= scope)
    }
}

const fn key(stem: &'static str, scope: Scope, kind: Kind, default: &'static str) -> ConfigKey {
    ConfigKey { stem, scope, kind, default }
}

const INTEGER: Kind = Integer(0, u64::MAX);
const FLOAT: Kind = Float(f64::MIN, f64::MAX);

/// All keys, by name.
const KEYS: &[ConfigKey] = &[
    key("atime_update_interval", Image, INTEGER, "60"),
    key("auto_exclusive_lock_until_manual_request", Global, Flag, "true"),
    key("balance_parent_reads", Image, Flag, "false"),
    key("balance_snap_reads", Image, Flag, "false"),
    key("blkin_trace_all", Image, Flag, "false"),
    key("blocklist_expire_seconds", Image, INTEGER, "0"),
    key("blocklist_on_break_lock", Image, Flag, "true"),
    key("cache", Image, Flag, "true"),
    key("cache_block_writes_upfront", Image, Flag, "false"),
    key("cache_max_dirty", Image, Bytes, "25165824"),
    key("cache_max_dirty_age", Image, FLOAT, "1.000000"),
    key("cache_max_dirty_object", Image, INTEGER, "0"),
    key(
        "cache_policy",
        Image,
        Choice(&["writethrough", "writeback", "writearound"]),
        "writearound",
    ),
    key("cache_size", Image, Bytes, "33554432"),
    key("cache_target_dirty", Image, Bytes, "16777216"),
    key("cache_writethrough_until_flush", Image, Flag, "false"),
    key("clone_copy_on_read", Image, Flag, "false"),
    key("compression_hint", Image, Choice(&["none", "compressible", "incompressible"]), "none"),
    key("concurrent_management_ops", Image, Integer(1, u64::MAX), "10"),
    key("config_pool_override_update_timestamp", Global, INTEGER, "0"),
    key("default_clone_format", Pool, Choice(&["1", "2", "auto"]), "auto"),
    key("default_data_pool", Pool, Text, ""),
    key("default_features", Pool, Features, "61"),
    key("default_format", Global, INTEGER, "2"),
    key("default_map_options", Image, Text, ""),
    key("default_order", Pool, INTEGER, "22"),
    key("default_pool", Global, Text, "rbd"),
    key(
        "default_snapshot_quiesce_mode",
        Image,
        Choice(&["required", "ignore-error", "skip"]),
        "required",
    ),
    key("default_stripe_count", Pool, INTEGER, "0"),
    key("default_stripe_unit", Pool, Bytes, "0"),
    key("disable_zero_copy_writes", Image, Flag, "true"),
    key("discard_granularity_bytes", Image, PowerOfTwo(4096, 33554432), "65536"),
    key("discard_on_zeroed_write_same", Global, Flag, "true"),
    key("enable_alloc_hint", Image, Flag, "true"),
    key("invalidate_object_map_on_timeout", Image, Flag, "true"),
    key("io_scheduler", Image, Choice(&["none", "simple"]), "simple"),
    key("io_scheduler_simple_max_delay", Image, INTEGER, "0"),
    key("journal_commit_age", Image, FLOAT, "5.000000"),
    key("journal_max_concurrent_object_sets", Image, INTEGER, "0"),
    key("journal_max_payload_bytes", Image, Bytes, "16384"),
    key("journal_object_flush_age", Image, FLOAT, "0.000000"),
    key("journal_object_flush_bytes", Image, Bytes, "1048576"),
    key("journal_object_flush_interval", Image, INTEGER, "0"),
    key("journal_object_max_in_flight_appends", Image, INTEGER, "0"),
    key("journal_object_writethrough_until_flush", Image, Flag, "true"),
    key("journal_order", Pool, Integer(12, 26), "24"),
    key("journal_pool", Pool, Text, ""),
    key("journal_splay_width", Pool, INTEGER, "4"),
    key("localize_parent_reads", Image, Flag, "false"),
    key("localize_snap_reads", Image, Flag, "false"),
    key("mirror_concurrent_image_deletions", Pool, Integer(1, u64::MAX), "1"),
    key("mirror_concurrent_image_syncs", Pool, INTEGER, "5"),
    key("mirror_delete_retry_interval", Pool, FLOAT, "30.000000"),
    key("mirror_image_perf_stats_prio", Pool, Integer(0, 11), "5"),
    key("mirror_image_policy_migration_throttle", Pool, INTEGER, "300"),
    key("mirror_image_policy_rebalance_timeout", Pool, FLOAT, "0.000000"),
    key("mirror_image_policy_type", Pool, Choice(&["none", "simple"]), "simple"),
    key("mirror_image_policy_update_throttle_interval", Pool, Float(1.0, f64::MAX), "1.000000"),
    key("mirror_image_state_check_interval", Pool, Integer(1, u64::MAX), "30"),
    key("mirror_journal_commit_age", Pool, FLOAT, "5.000000"),
    key("mirror_journal_poll_age", Pool, FLOAT, "5.000000"),
    key("mirror_leader_heartbeat_interval", Pool, Integer(1, u64::MAX), "5"),
    key("mirror_leader_max_acquire_attempts_before_break", Pool, INTEGER, "3"),
    key("mirror_leader_max_missed_heartbeats", Pool, INTEGER, "2"),
    key("mirror_memory_autotune", Pool, Flag, "true"),
    key("mirror_memory_base", Pool, Bytes, "805306368"),
    key("mirror_memory_cache_autotune_interval", Pool, FLOAT, "30.000000"),
    key("mirror_memory_cache_min", Pool, Bytes, "134217728"),
    key("mirror_memory_cache_resize_interval", Pool, FLOAT, "5.000000"),
    key("mirror_memory_expected_fragmentation", Pool, Float(0.0, 1.0), "0.150000"),
    key("mirror_memory_target", Pool, Bytes, "4294967296"),
    key("mirror_perf_stats_prio", Pool, Integer(0, 11), "5"),
    key("mirror_pool_replayers_refresh_interval", Global, INTEGER, "30"),
    key("mirror_sync_point_update_age", Pool, FLOAT, "30.000000"),
    key("mirroring_delete_delay", Image, INTEGER, "0"),
    key("mirroring_max_mirroring_snapshots", Image, Integer(3, u64::MAX), "5"),
    key("mirroring_replay_delay", Image, INTEGER, "0"),
    key("mirroring_resync_after_disconnect", Image, Flag, "false"),
    key("move_parent_to_trash_on_remove", Image, Flag, "false"),
    key("move_to_trash_on_remove", Image, Flag, "false"),
    key("move_to_trash_on_remove_expire_seconds", Image, INTEGER, "0"),
    key("mtime_update_interval", Image, INTEGER, "60"),
    key("non_blocking_aio", Image, Flag, "true"),
    key("op_thread_timeout", Global, INTEGER, "60"),
    key("op_threads", Global, INTEGER, "1"),
    key("parent_cache_enabled", Image, Flag, "false"),
    key("persistent_cache_mode", Image, Choice(&["disabled", "rwl", "ssd"]), "disabled"),
    key("persistent_cache_path", Image, Text, "/tmp"),
    key("persistent_cache_size", Image, Integer(1073741824, u64::MAX), "1073741824"),
    key("plugins", Image, Text, ""),
    key("qos_bps_burst", Image, INTEGER, "0"),
    key("qos_bps_burst_seconds", Image, Integer(1, u64::MAX), "1"),
    key("qos_bps_limit", Image, INTEGER, "0"),
    key("qos_iops_burst", Image, INTEGER, "0"),
    key("qos_iops_burst_seconds", Image, Integer(1, u64::MAX), "1"),
    key("qos_iops_limit", Image, INTEGER, "0"),
    key("qos_read_bps_burst", Image, INTEGER, "0"),
    key("qos_read_bps_burst_seconds", Image, Integer(1, u64::MAX), "1"),
    key("qos_read_bps_limit", Image, INTEGER, "0"),
    key("qos_read_iops_burst", Image, INTEGER, "0"),
    key("qos_read_iops_burst_seconds", Image, Integer(1, u64::MAX), "1"),
    key("qos_read_iops_limit", Image, INTEGER, "0"),
    key("qos_schedule_tick_min", Image, Integer(1, u64::MAX), "50"),
    key("qos_write_bps_burst", Image, INTEGER, "0"),
    key("qos_write_bps_burst_seconds", Image, Integer(1, u64::MAX), "1"),
    key("qos_write_bps_limit", Image, INTEGER, "0"),
    key("qos_write_iops_burst", Image, INTEGER, "0"),
    key("qos_write_iops_burst_seconds", Image, Integer(1, u64::MAX), "1"),
    key("qos_write_iops_limit", Image, INTEGER, "0"),
    key("quiesce_notification_attempts", Image, Integer(1, u64::MAX), "10"),
    key("read_from_replica_policy", Image, Choice(&["default", "balance", "localize"]), "default"),
    key("readahead_disable_after_bytes", Image, Bytes, "52428800"),
    key("readahead_max_bytes", Image, Bytes, "524288"),
    key("readahead_trigger_requests", Image, INTEGER, "10"),
    key("request_timed_out_seconds", Image, INTEGER, "30"),
    key("skip_partial_discard", Image, Flag, "true"),
    key("sparse_read_threshold_bytes", Image, Bytes, "65536"),
    key("tracing", Global, Flag, "false"),
    key("validate_names", Global, Flag, "true"),
    key("validate_pool", Global, Flag, "true"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sorted_and_take_their_defaults() {
        assert!(KEYS.is_sorted_by(|a, b| a.stem < b.stem));
        for key in KEYS {
            assert!(key.kind.normal(key.default).is_ok(), "{}", key.stem);
        }
        assert_eq!(ConfigKey::all(Scope::Image).count(), 77);
        assert_eq!(ConfigKey::all(Scope::Pool).count(), 109);
        assert!(ConfigKey::named("cache").is_none() && ConfigKey::named("rbd_cache").is_some());
    }
}

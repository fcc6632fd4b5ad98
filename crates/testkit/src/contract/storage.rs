//! What an account must do, whichever store it is: every method, and every answer that callers tell apart.
//!
//! [`storage_contract!`](crate::storage_contract) makes one test of each case. Each gets an account and a
//! prefix of its own: 1 to 20 lower-case letters and digits, a letter first.
//! [`strict_storage_contract!`](crate::strict_storage_contract) adds the cases in which the emulator is
//! known to be laxer than the service.

pub mod blobs;
pub mod queues;
pub mod tables;

use taskhub_storage::{Error, ErrorKind, Result};

/// Makes a test of every case: `storage_contract!([tokio::test], setup)`, in which `setup` is a function
/// that makes an account and a prefix, `async fn() -> (StorageAccount, String)`.
#[macro_export]
macro_rules! storage_contract {
    ([$($attribute:tt)*], $setup:path) => {
        $crate::storage_contract! { @cases [$($attribute)*] $setup, queues:
            a_queue_is_created_once_listed_and_deleted
            a_missing_queue_is_not_found
            a_message_is_put_received_and_deleted
            texts_survive
            messages_come_in_order_of_insertion
            a_delayed_message_shows_when_its_time_has_come
            a_peek_shows_only_what_is_visible_and_receives_nothing
            an_update_hides_the_message_and_voids_the_old_receipt
            an_update_to_zero_shows_the_message_at_once
            an_old_receipt_works_until_somebody_else_receives
            the_receipt_of_a_put_can_delete_the_message
            counts_and_delays_have_limits
            a_message_has_a_largest_size
            control_characters_are_refused
        }
        $crate::storage_contract! { @cases [$($attribute)*] $setup, tables:
            a_table_is_created_once_listed_ignoring_case_and_deleted
            a_missing_table_is_not_found
            every_type_of_value_survives
            keys_with_special_characters_survive
            an_insert_fails_when_the_row_exists
            replace_and_merge_need_the_row_and_its_version
            a_merge_keeps_other_columns_and_a_replace_does_not
            upserts_need_nothing
            a_delete_needs_the_row_and_its_version
            a_transaction_is_all_or_nothing
            transactions_have_limits
            keys_and_values_have_limits
            rows_come_in_key_order
            pages_go_on_where_the_last_ended
            filters_choose_rows
            a_wrong_filter_is_refused
            a_selection_returns_only_what_it_names
        }
        $crate::storage_contract! { @cases [$($attribute)*] $setup, blobs:
            a_container_is_created_once_listed_and_deleted
            a_missing_container_or_blob_is_not_found
            a_blob_is_written_read_and_deleted
            an_empty_blob_is_read
            a_large_blob_is_read_whole
            blob_names_survive
            writes_can_be_conditional
            blobs_are_listed_by_prefix
            a_lease_keeps_others_from_writing
            a_lease_is_taken_renewed_changed_and_released
            a_broken_lease_is_free_at_once
            an_expired_lease_can_be_renewed_until_somebody_writes_or_takes_it
            a_container_can_be_leased
            lease_durations_have_limits
            a_container_url_is_absolute
        }
    };
    (@cases $attribute:tt $setup:path, $module:ident: $($case:ident)*) => {
        mod $module {
            use super::*;
            $($crate::storage_contract! { @case $attribute $setup, $module, $case })*
        }
    };
    (@case [$($attribute:tt)*] $setup:path, $module:ident, $case:ident) => {
        #[$($attribute)*]
        async fn $case() {
            let (account, prefix) = $setup().await;
            Box::pin($crate::contract::storage::$module::$case(&account, &prefix)).await;
        }
    };
}

/// Makes a test of every case that the service and the embedded store pass and the emulator does not.
/// Takes what [`storage_contract!`](crate::storage_contract) takes.
#[macro_export]
macro_rules! strict_storage_contract {
    ($attribute:tt, $setup:path) => {
        mod strict {
            use super::*;
            $crate::storage_contract! { @cases $attribute $setup, tables: an_unclosed_quote_is_refused }
            $crate::storage_contract! { @cases $attribute $setup, blobs:
                a_write_to_any_version_needs_the_blob
            }
        }
    };
}

/// The error of a request that must fail in this way.
#[track_caller]
fn refused<T: std::fmt::Debug>(outcome: Result<T>, kind: ErrorKind, status: u16, code: &str) -> Error {
    let error = outcome.expect_err(code);
    assert_eq!((error.kind(), error.status(), error.code()), (kind, Some(status), Some(code)), "{error}");
    error
}

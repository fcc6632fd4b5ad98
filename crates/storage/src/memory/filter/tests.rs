use super::*;
use crate::Properties;

fn row() -> Properties {
    Properties::from([
        ("Name".into(), Value::from("O'Brien")),
        ("Small".into(), Value::Int32(7)),
        ("Large".into(), Value::Int64(5_000_000_000)),
        ("Ratio".into(), Value::Double(1.5)),
        ("Done".into(), Value::Bool(true)),
        ("At".into(), Value::DateTime(Timestamp::parse("2026-01-15T09:30:00.1234567Z").unwrap())),
        ("Id".into(), Value::Guid(uuid::Uuid::from_u128(17))),
        ("Data".into(), Value::Binary(vec![1, 255])),
    ])
}

#[track_caller]
fn check(filter: &str, expected: bool) {
    let columns = Packed::new(&row());
    let row = Columns {
        partition_key: "p 1",
        row_key: "r",
        written_at: Timestamp::parse("2026-02-01").unwrap(),
        columns: &columns,
    };
    let parsed = Filter::parse(filter).unwrap_or_else(|error| panic!("{filter}: {error}"));
    assert_eq!(parsed.matches(&row), expected, "{filter}");
}

#[test]
fn every_type_compares_with_its_own_literals() {
    check("Name eq 'O''Brien'", true);
    check("Name gt 'O''Briem' and Name lt 'O''Briep'", true);
    check("'O''Brien' eq Name", true);
    check("8 gt Small", true);
    check("Small ge 7", true);
    check("Small eq 7L", true);
    check("Small ne 8", true);
    check("Large eq 5000000000L", true);
    check("Large gt 5", true);
    check("Ratio lt 1.6", true);
    check("Ratio gt 1", true);
    check("Ratio eq 15e-1", true);
    check("Done eq true", true);
    check("Done", true);
    check("not Done", false);
    check("At eq datetime'2026-01-15T09:30:00.1234567Z'", true);
    check("At le datetime'2026-01-15T09:30:00Z'", false);
    check("Id eq guid'00000000-0000-0000-0000-000000000011'", true);
    check("Data eq X'01ff'", true);
    check("Data eq binary'01ff'", true);
    check("PartitionKey eq 'p 1' and RowKey eq 'r'", true);
    check("Timestamp ge datetime'2026-02-01T00:00:00Z'", true);
}

#[test]
fn an_absent_property_or_another_type_matches_nothing() {
    check("Missing eq 'x'", false);
    check("Missing ne 'x'", false);
    check("Name eq 7", false);
    check("Small ne '7'", false);
}

#[test]
fn not_binds_tighter_than_and_and_and_tighter_than_or() {
    check("Small eq 7 or Small eq 8 and Small eq 9", true);
    check("(Small eq 7 or Small eq 8) and Small eq 9", false);
    check("not Small eq 8 and Small eq 7", true);
    check("not (Small eq 7 or Small eq 8)", false);
    check("not not Small eq 7", true);
    check("((Small eq 7))", true);
    check("(RuntimeStatus eq 'x' or Name eq 'O''Brien') and (Small le 7)", true);
    check("true or false", true);
}

#[test]
fn wrong_filters_are_errors() {
    for filter in [
        "Name", // alone is fine, see below
        "Name eq",
        "Name eq 'x",
        "(Name eq 'x'",
        "Name eq 'x')",
        "and",
        "Name eq 'x' and",
        "Name eq 'x' Name",
        "'x'",
        "Name 'x'",
        "Name eq 12x",
        "At eq datetime'yesterday'",
        "Name ~ 'x'",
        "Name eq Name",
        "1 eq 1",
        "()",
    ] {
        assert_eq!(Filter::parse(filter).is_err(), filter != "Name", "{filter}");
    }
}

#[test]
fn long_and_deep_filters_do_not_exhaust_the_stack() {
    check(&format!("{}Small eq 7{}", "(".repeat(20_000), ")".repeat(20_000)), true);
    check(&format!("{}Done", "not ".repeat(16_000)), true);
    check(&vec!["Small eq 8"; 4_000].join(" or "), false);
    assert!(Filter::parse(&"(".repeat(65_537)).is_err());
}

#[test]
fn filters_on_keys_bound_the_scan() {
    let bounds = |filter: &str| {
        let bounds = Filter::parse(filter).unwrap().key_bounds();
        let (partition, row) = bounds.first();
        let last = bounds.last().map(|(partition, row)| (partition.to_owned(), row.map(str::to_owned)));
        (partition.into_owned(), row.into_owned(), last)
    };
    let text = str::to_owned;
    assert_eq!(bounds("PartitionKey eq 'a'"), (text("a"), text(""), Some((text("a"), None))));
    assert_eq!(
        bounds("PartitionKey eq 'a' and RowKey ge 'b' and Small eq 1"),
        (text("a"), text("b"), Some((text("a"), None)))
    );
    assert_eq!(
        bounds("(PartitionKey ge 'a') and (PartitionKey lt 'b')"),
        (text("a"), text(""), Some((text("b"), None)))
    );
    assert_eq!(
        bounds("PartitionKey eq 'a' and (RowKey eq 'x' or RowKey eq 'y')"),
        (text("a"), text("x"), Some((text("a"), Some(text("y")))))
    );
    assert_eq!(bounds("PartitionKey eq 'a' or Small eq 1"), (text(""), text(""), None));
    assert_eq!(bounds("not (PartitionKey eq 'a')"), (text(""), text(""), None));
    assert_eq!(bounds("PartitionKey lt '@' or PartitionKey ge 'A'"), (text(""), text(""), None));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in "[ ()'a-zA-Z0-9.LeE+-]{0,40}|\\PC{0,40}") {
        let _ = Filter::parse(&text);
    }

    #[test]
    fn what_is_out_of_bounds_does_not_match(
        partition_key in "[a-c]{0,2}", row_key in "[a-c]{0,2}",
        terms in proptest::collection::vec(("(PartitionKey|RowKey)", "(eq|ne|gt|ge|lt|le)", "[a-c]{0,2}", "(and|or)", "(not )?"), 1..5),
    ) {
        let mut text = String::new();
        for (index, (name, comparison, value, join, not)) in terms.iter().enumerate() {
            if index > 0 {
                text.push_str(&format!(" {join} "));
            }
            text.push_str(&format!("{not}{name} {comparison} '{value}'"));
        }
        let filter = Filter::parse(&text).unwrap();
        let columns = Packed::new(&Properties::new());
        let row = Columns {
            partition_key: &partition_key, row_key: &row_key, written_at: Timestamp::MIN, columns: &columns,
        };
        if filter.matches(&row) {
            let bounds = filter.key_bounds();
            let (first_partition, first_row) = bounds.first();
            let keys = (partition_key.as_str(), row_key.as_str());
            proptest::prop_assert!(keys >= (first_partition.as_ref(), first_row.as_ref()), "{text}");
            if let Some((last_partition, last_row)) = bounds.last() {
                proptest::prop_assert!(keys.0 < last_partition
                    || keys.0 == last_partition && last_row.is_none_or(|last| keys.1 <= last), "{text}");
            }
        }
    }
}

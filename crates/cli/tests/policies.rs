//! The policies in docs/bucket-policies.md: they are JSON, and give a template user no right to write anywhere but
//! below `children/`.

use std::path::Path;

use serde_json::Value;

/// Rights that change nothing.
const READING: [&str; 2] = ["s3:GetObject", "s3:ListBucket"];
/// Rights that a template user has below `children/` only.
const MARKING: [&str; 2] = ["s3:PutObject", "s3:DeleteObject"];
const MARKERS: &str = "arn:aws:s3:::BUCKET/golden/children/*";

fn document() -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/bucket-policies.md");
    std::fs::read_to_string(root).unwrap()
}

/// The JSON blocks of the document.
fn blocks() -> Vec<Value> {
    let document = document();
    let blocks = document.split("```json\n").skip(1);
    let texts = blocks.map(|rest| rest.split("```").next().unwrap());
    texts.map(|text| serde_json::from_str(text).expect(text)).collect()
}

fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value[field].as_str().unwrap_or_else(|| panic!("{field} of {value}"))
}

#[test]
fn a_template_user_of_s3_writes_below_children_only() {
    let blocks = blocks();
    let policies: Vec<_> =
        blocks.iter().filter_map(|block| block["Statement"].as_array()).collect();
    assert_eq!(policies.len(), 1);
    let mut marks = 0;
    for statement in policies[0] {
        assert_eq!(text(statement, "Effect"), "Allow");
        let action = text(statement, "Action");
        if MARKING.contains(&action) {
            assert_eq!(text(statement, "Resource"), MARKERS);
            marks += 1;
        } else {
            assert!(READING.contains(&action), "{action}");
        }
    }
    assert_eq!(marks, MARKING.len());
    let denied: Vec<_> = blocks.iter().filter(|block| block["Effect"] == "Deny").collect();
    assert_eq!(denied.len(), 1);
    assert_eq!((text(denied[0], "Action"), text(denied[0], "Resource")), ("s3:PutObject", MARKERS));
}

#[test]
fn a_template_user_of_azure_creates_and_replaces_nothing() {
    let blocks = blocks();
    let role = blocks.iter().find(|block| block["DataActions"].is_array()).unwrap();
    assert_eq!(role["Actions"], Value::Array(Vec::new()));
    let actions: Vec<&str> = role["DataActions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|action| action.as_str().unwrap())
        .collect();
    let condition = document();
    for action in &actions {
        let short =
            action.strip_prefix("Microsoft.Storage/storageAccounts/blobServices/containers/blobs/");
        assert!(["read", "add/action", "delete"].contains(&short.unwrap()), "{action}");
        assert!(condition.contains(&format!("ActionMatches{{'{action}'}}")), "{action} is limited");
    }
}

#[test]
fn a_template_user_of_gcs_creates_and_removes_below_children_only() {
    let document = document();
    let bindings = document.split("add-iam-policy-binding ").skip(1);
    let mut writes = 0;
    for binding in bindings {
        let command = binding.split("\n\n").next().unwrap();
        let reads = command.contains("roles/storage.objectViewer");
        let place = match reads {
            true => "objects/golden/\")",
            false => "objects/golden/children/\")",
        };
        assert!(command.contains(place), "{command}");
        writes += usize::from(!reads);
    }
    assert_eq!(writes, 2);
}

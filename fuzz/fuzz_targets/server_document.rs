//! The writer of answers: any text stays one JSON string and one XML element.
#![no_main]

use lastkey_server::alibaba::document::{Document, Format, fits_xml};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut document = Document::begin(Format::Json, "KMS");
    document.text("T", text);
    document.list(("Ts", "T"), [text, text], |entry, text| entry.text("T", text));
    let json: serde_json::Value =
        serde_json::from_str(&document.finish()).expect("an answer is JSON");
    assert_eq!(json["T"], text);
    assert_eq!(json["Ts"]["T"][1]["T"], text);

    let mut document = Document::begin(Format::Xml, "KMS");
    document.text("T", text);
    let xml = document.finish();
    assert!(fits_xml(&xml));
    assert_eq!(xml.matches('<').count(), 5);
});

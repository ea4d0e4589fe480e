//! Of how a document is written: words are the same in every reading.

use filters::policy::Policy;

use super::{read, with_certificates};

/// Whoever reads the document, as YAML with places or as the JSON that a module gets, reads the same words.
#[test]
fn words_are_words_in_every_reading() {
    for (written, fine) in
        [("mode: off", true), ("mode: \"off\"", true), ("mode: Off", false), ("mode: false", false)]
    {
        let yaml = with_certificates("{ dns: a.test }", &format!("{{ client_cert: {{ {written} }} }}"), true);
        let json = Policy::compile(&yaml).unwrap();
        assert_eq!(read(&yaml).is_ok(), fine, "{written}");
        assert_eq!(read(&json).is_ok(), fine, "{written}");
    }
    for (written, fine) in [("required: true", true), ("required: yes", false), ("required: on", false)] {
        let yaml = with_certificates("{ dns: a.test }", "{ client_cert: {} }", true)
            .replace("clients.pem\" }", &format!("clients.pem\", {written} }}"));
        let json = Policy::compile(&yaml).unwrap();
        assert_eq!((read(&yaml).is_ok(), read(&json).is_ok()), (fine, fine), "{written}");
    }
}

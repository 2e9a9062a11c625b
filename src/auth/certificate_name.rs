//! The names in client certificates, distinguished by kind: a DNS name never equals a URI, however
//! it is spelt.

use std::fmt;
use std::net::IpAddr;

/// A name in a client certificate. Two names are equal only if their kinds are.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum CertificateName {
    /// A URI among the alternative names, compared as it is written.
    Uri(String),
    /// A DNS name among the alternative names, in lower case. One with a "*" is a name like any
    /// other, not a pattern.
    Dns(String),
    /// An e-mail address among the alternative names, its host in lower case.
    Email(String),
    /// An IP address among the alternative names.
    Ip(IpAddr),
    /// The common name of a certificate that has no alternative names, compared as it is written.
    Common(String),
}

impl CertificateName {
    /// Creates a DNS name, which is compared without regard to case.
    pub fn dns(name: &str) -> Self {
        Self::Dns(name.to_ascii_lowercase())
    }

    /// Creates an e-mail address, whose host is compared without regard to case.
    pub fn email(address: &str) -> Self {
        Self::Email(match address.rsplit_once('@') {
            Some((local, host)) => format!("{local}@{}", host.to_ascii_lowercase()),
            None => address.to_owned(),
        })
    }

    /// Parses a name as the configuration writes it. The prefixes "uri:", "dns:", "email:", "ip:"
    /// and "cn:" state its kind. Without a prefix, a name that contains "://" is a URI, and one
    /// that has the form of a host name is a DNS name, or the common name of a certificate that has
    /// no alternative names.
    ///
    /// # Errors
    /// The name is of no kind, or could be of several; the error says what is allowed.
    pub fn configured(text: &str) -> Result<Vec<Self>, &'static str> {
        const KINDS: &str = "a URI (\"scheme://...\"), a host's name (\"a.example\"), or a name with its kind before it: \"uri:\", \"dns:\", \"email:\", \"ip:\" or \"cn:\"";
        const DNS: &str = "a host's name after \"dns:\", without \"*\": no name is a pattern";
        let prefixed = text
            .split_once(':')
            .filter(|(_, rest)| !rest.starts_with("//"));
        let one = |holds: bool, name: Self, allowed| match holds {
            true => Ok(vec![name]),
            false => Err(allowed),
        };
        match prefixed {
            Some(("uri", name)) => {
                let holds = name.contains(':') && name.is_ascii() && !has_blanks(name);
                one(holds, Self::Uri(name.to_owned()), "a URI after \"uri:\"")
            }
            Some(("dns", name)) => one(is_host(name), Self::dns(name), DNS),
            Some(("email", name)) => {
                let holds = name
                    .rsplit_once('@')
                    .is_some_and(|(local, host)| !local.is_empty() && is_host(host));
                let allowed = "an e-mail address after \"email:\"";
                one(holds && !has_blanks(name), Self::email(name), allowed)
            }
            Some(("ip", name)) => match name.parse() {
                Ok(address) => Ok(vec![Self::Ip(address)]),
                Err(_) => Err("an IP address after \"ip:\""),
            },
            Some(("cn", name)) => {
                let holds = !name.is_empty() && !name.contains(char::is_control);
                one(
                    holds,
                    Self::Common(name.to_owned()),
                    "a common name after \"cn:\"",
                )
            }
            Some(_) => Err(KINDS),
            None if text.contains("://") => {
                let holds = text.is_ascii() && !has_blanks(text);
                one(holds, Self::Uri(text.to_owned()), KINDS)
            }
            None if is_host(text) && text.parse::<IpAddr>().is_err() => {
                Ok(vec![Self::dns(text), Self::Common(text.to_owned())])
            }
            None => Err(KINDS),
        }
    }
}

impl fmt::Display for CertificateName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uri(name) => write!(f, "uri:{name}"),
            Self::Dns(name) => write!(f, "dns:{name}"),
            Self::Email(name) => write!(f, "email:{name}"),
            Self::Ip(address) => write!(f, "ip:{address}"),
            Self::Common(name) => write!(f, "cn:{name}"),
        }
    }
}

/// Reports whether the text has white space or control characters.
fn has_blanks(text: &str) -> bool {
    text.contains(|c: char| c.is_whitespace() || c.is_control())
}

/// Reports whether the text has the form of a host name.
fn is_host(name: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
    };
    name.len() <= 253 && name.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::CertificateName;

    fn configured(text: &str) -> String {
        match CertificateName::configured(text) {
            Ok(names) => {
                let names: Vec<String> = names.iter().map(ToString::to_string).collect();
                names.join(" ")
            }
            Err(_) => "refused".to_owned(),
        }
    }

    #[test]
    fn a_configured_name_says_its_kind() {
        for (text, expected) in [
            ("spiffe://test/a", "uri:spiffe://test/a"),
            ("uri:urn:a:b", "uri:urn:a:b"),
            ("uri:spiffe://Test/a", "uri:spiffe://Test/a"),
            ("A.Test", "dns:a.test cn:A.Test"),
            ("team-a", "dns:team-a cn:team-a"),
            ("dns:A.Test", "dns:a.test"),
            ("cn:Team A", "cn:Team A"),
            ("cn:spiffe://test/a", "cn:spiffe://test/a"),
            ("email:Me@A.Test", "email:Me@a.test"),
            ("ip:10.0.0.1", "ip:10.0.0.1"),
            ("ip:::1", "ip:::1"),
        ] {
            assert_eq!(configured(text), expected, "{text}");
        }
    }

    #[test]
    fn what_may_be_of_several_kinds_or_is_of_none_is_refused() {
        for text in [
            "",
            "Team A",
            "me@a.test",
            "10.0.0.1",
            "::1",
            "urn:a:b",
            "*.test",
            "dns:*.test",
            "dns:",
            "dns:a.test.",
            "cn:",
            "ip:a.test",
            "email:a.test",
            "uri:a.test",
            "spiffe://test/a b",
            "a.test:443",
            "DNS:a.test",
        ] {
            assert_eq!(configured(text), "refused", "{text}");
        }
    }
}

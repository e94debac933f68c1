//! Zones written in Rust.

use std::fmt::Write as _;
use std::net::IpAddr;

use anyhow::{Context as _, Result};

use crate::dns::wire::{Name, Record, kind};

/// A zone with an SOA and an NS record; names in it are relative (`@` = the zone itself, `*` = wildcard).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    origin: String,
    records: Vec<Record>,
}

/// How long a resolver remembers what does not exist (last field of the SOA), and the TTL of SOA and NS.
pub(crate) const NEGATIVE_TTL: u32 = 5;

impl Zone {
    /// An empty zone, e.g. `example.test`, or `.` for the root.
    pub fn new(origin: &str) -> Result<Self> {
        let origin = origin.trim_end_matches('.').to_owned();
        let mut zone = Self { origin, records: Vec::new() };
        let server = Name::parse("ns.invalid")?;
        let mut soa = [server.bytes(), Name::parse("hostmaster.invalid")?.bytes()].concat();
        for number in [1, 3600, 600, 86_400, NEGATIVE_TTL] {
            soa.extend(number.to_be_bytes());
        }
        let apex = zone.name("@")?;
        zone.records.push(Record { name: apex.clone(), kind: kind::SOA, ttl: NEGATIVE_TTL, data: soa });
        let data = server.bytes().to_vec();
        zone.records.push(Record { name: apex, kind: kind::NS, ttl: NEGATIVE_TTL, data });
        if zone.origin.is_empty() {
            // BIND loads no zone whose own server has no address in it; nobody asks there.
            return zone.at("ns.invalid", NEGATIVE_TTL, "192.0.2.1");
        }
        Ok(zone)
    }

    /// A and AAAA records of one name, all with one TTL.
    pub fn addresses(mut self, name: &str, ttl: u32, addresses: &[IpAddr]) -> Result<Self> {
        let name = self.name(name)?;
        self.records.extend(addresses.iter().map(|address| Record::address(name.clone(), ttl, *address)));
        Ok(self)
    }

    /// As [`Zone::addresses`], the addresses as text, separated by spaces.
    pub fn at(self, name: &str, ttl: u32, addresses: &str) -> Result<Self> {
        let addresses =
            addresses.split_whitespace().map(|text| text.parse().with_context(|| text.to_owned()));
        let addresses = addresses.collect::<Result<Vec<IpAddr>>>()?;
        self.addresses(name, ttl, &addresses)
    }

    /// A CNAME; the target is relative unless it ends in a dot.
    pub fn cname(mut self, name: &str, ttl: u32, target: &str) -> Result<Self> {
        let record = Record::cname(self.name(name)?, ttl, &self.name(target)?);
        self.records.push(record);
        Ok(self)
    }

    /// A TXT record with so many bytes of text.
    pub fn text(mut self, name: &str, ttl: u32, bytes: usize) -> Result<Self> {
        let record = Record::text(self.name(name)?, ttl, bytes);
        self.records.push(record);
        Ok(self)
    }

    /// An HTTPS or SVCB record with address hints; the target is relative unless it ends in a dot (`.` = the owner).
    pub fn service(
        mut self,
        name: &str,
        kind: u16,
        ttl: u32,
        target: &str,
        hints: &[IpAddr],
    ) -> Result<Self> {
        let record = Record::service(self.name(name)?, kind, ttl, &self.name(target)?, hints)?;
        self.records.push(record);
        Ok(self)
    }

    /// Any other record.
    pub fn record(mut self, name: &str, kind: u16, ttl: u32, data: Vec<u8>) -> Result<Self> {
        let name = self.name(name)?;
        self.records.push(Record { name, kind, ttl, data });
        Ok(self)
    }

    /// The zone's name without a dot at the end; the root is empty.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// All records, SOA and NS included.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    fn name(&self, relative: &str) -> Result<Name> {
        match relative.strip_suffix('.') {
            Some(absolute) => Name::parse(absolute),
            None if relative == "@" => Name::parse(&self.origin),
            None if self.origin.is_empty() => Name::parse(relative),
            None => Name::parse(&format!("{relative}.{}", self.origin)),
        }
    }

    /// The zone as a file. All data is in the generic form of RFC 3597 section 5, which every server reads for every
    /// type, so that the bytes are those of [`Zone::records`].
    pub fn file(&self) -> Result<String> {
        let mut text = String::new();
        for Record { name, kind, ttl, data } in &self.records {
            write!(text, "{name} {ttl} IN TYPE{kind} \\# {} ", data.len())?;
            for byte in data {
                write!(text, "{byte:02x}")?;
            }
            text.push('\n');
        }
        Ok(text)
    }
}

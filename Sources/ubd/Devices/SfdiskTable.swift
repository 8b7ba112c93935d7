import BrokerInterface
import Varlink

/// A disk's partition table in the JSON of sfdisk(8). Its content is untrusted, except for plain numbers.
struct SfdiskTable: Equatable {
    struct Partition: Equatable {
        /// The disk's own number, from 1 on.
        var number: Int
        /// Bytes from the disk's start.
        var offset: UInt64
        /// Bytes.
        var size: UInt64
        /// A GUID (gpt), or a hexadecimal number (dos).
        var type: String
        /// Only gpt has names.
        var name: String?
        /// Why no device can be made of it; sfdisk says nothing of that.
        var fault: String?

        var json: JSON {
            .record([
                ("number", .integer(Int64(number))), ("offset", .integer(Int64(clamping: offset))),
                ("sizeBytes", .integer(Int64(clamping: size))), ("type", .string(type)),
                ("name", name.map(JSON.string)), ("fault", fault.map(JSON.string)),
            ])
        }
    }

    /// "gpt" or "dos", mostly.
    var label: String
    var partitions: [Partition]

    /// A disk with a GPT also has an old table with one partition of type EE over all of it, which keeps old programs
    /// away. When sfdisk shows that partition, it did not find the GPT.
    private(set) var hidesGPT = false

    /// nil when the text is no output of sfdisk.
    init?(sfdisk text: String, node: String) {
        let limits = JSONLimits(bytes: 1 << 20, depth: 8)
        guard let document = try? JSON(parsing: Array(text.utf8), limits: limits),
            let table = document["partitiontable"],
            case .string(let label)? = table["label"], case .string("sectors")? = table["unit"]
        else { return nil }
        self.label = label
        // Old versions leave the sector size out: it was 512.
        var sector: UInt64 = 512
        if case .integer(let bytes)? = table["sectorsize"], bytes > 0 { sector = UInt64(bytes) }
        partitions = []
        guard let entries = table["partitions"] else { return }
        guard case .array(let entries) = entries else { return nil }
        for entry in entries {
            guard let partition = Self.partition(entry, node: node, sector: sector) else { return nil }
            if label == "dos", partition.type.lowercased() == "ee" {
                hidesGPT = true
            } else {
                partitions.append(partition)
            }
        }
    }

    private static func partition(_ entry: JSON, node: String, sector: UInt64) -> Partition? {
        guard case .string(let name)? = entry["node"], name.hasPrefix(node), case .integer(let start)? = entry["start"],
            case .integer(let size)? = entry["size"], case .string(let type)? = entry["type"], start >= 0, size >= 0
        else { return nil }
        // "/dev/ublkb0p1": the node's name ends in a digit, so there is a p before the number.
        guard let number = Int(name.dropFirst(node.utf8.count).drop { $0 == "p" }) else { return nil }
        let (offset, tooFar) = UInt64(start).multipliedReportingOverflow(by: sector)
        let (bytes, tooMany) = UInt64(size).multipliedReportingOverflow(by: sector)
        guard !tooFar, !tooMany else { return nil }
        var label: String?
        if case .string(let text)? = entry["name"], !text.isEmpty { label = text }
        return Partition(number: number, offset: offset, size: bytes, type: type, name: label)
    }
}

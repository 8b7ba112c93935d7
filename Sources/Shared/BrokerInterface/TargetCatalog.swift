import Varlink

/// One option of a target: what it takes, what it means, what holds without it.
public struct OptionDescription: Sendable {
    /// What values there are.
    public enum Kind: Sendable, Equatable {
        /// Bytes within a range, a multiple of something, perhaps a power of two.
        case bytes(ClosedRange<UInt64>, multipleOf: UInt64, powerOfTwo: Bool)
        /// "true" or "false".
        case flag
    }

    /// The name on the wire; on the command line two dashes stand before it.
    public let name: String
    public let kind: Kind
    /// What holds when the option is not given, for people.
    public let defaultText: String
    /// One sentence without a full stop.
    public let help: String

    /// The values that are accepted, for people: "a power of two from 512 to 4096".
    public var range: String {
        switch kind {
        case .flag: return "true or false"
        case .bytes(let range, _, true):
            return "a power of two from \(range.lowerBound) to \(range.upperBound) bytes"
        case .bytes(let range, let step, false):
            let ceiling =
                range.upperBound >= TargetCatalog.largestSize ? "" : " and at most \(ByteSize.text(range.upperBound))"
            return "a multiple of \(step) bytes, at least \(range.lowerBound)\(ceiling)"
        }
    }
}

/// One kind of device.
public struct TargetDescription: Sendable {
    public let name: String
    /// One sentence without a full stop.
    public let summary: String
    /// The device is backed by a file of the client.
    public let needsFile: Bool
    /// The modes that may be chosen for it when none is asked for, best first. Measured: docs/performance.md.
    public let bestModes: [DataMode]
    public let options: [OptionDescription]

    /// The option of that name; nil when the target has none.
    public func option(_ name: String) -> OptionDescription? {
        options.first { $0.name.hasSameBytes(as: name) }
    }
}

/// All targets that there are, for the broker's checks and for the help of `ubd`.
public enum TargetCatalog {
    /// The largest size of a device: what fits a signed 64-bit count of bytes and is a multiple of every block size.
    public static let largestSize = ByteSize.maximum & ~4095
    /// Size of a null device when none is asked for: 250 GiB, as in ublksrv.
    public static let nullSize: UInt64 = 250 << 30

    public static let null = TargetDescription(
        name: "null",
        summary: "Completes every request at once; reads return zeroes, writes are dropped",
        needsFile: false,
        // Without a copy every read would have to be filled with zeros one by one.
        bestModes: [.batch, .copy],
        options: [
            OptionDescription(
                name: "size", kind: .bytes(512...largestSize, multipleOf: 512, powerOfTwo: false),
                defaultText: "250 GiB", help: "Size of the device"),
            OptionDescription(
                name: "block-size", kind: .bytes(512...4096, multipleOf: 512, powerOfTwo: true), defaultText: "512",
                help: "Logical block size"),
        ])

    public static let loop = TargetDescription(
        name: "loop",
        summary: "Serves a regular file or a block device",
        needsFile: true,
        bestModes: [.batchZeroCopy, .zeroCopy, .batch, .copy],
        options: [
            OptionDescription(
                name: "offset", kind: .bytes(0...largestSize, multipleOf: 512, powerOfTwo: false), defaultText: "0",
                help: "Where in the file the device begins"),
            OptionDescription(
                name: "size", kind: .bytes(512...largestSize, multipleOf: 512, powerOfTwo: false),
                defaultText: "up to the end of the file", help: "Size of the device"),
            OptionDescription(
                name: "block-size", kind: .bytes(512...4096, multipleOf: 512, powerOfTwo: true),
                defaultText: "512, or that of the block device behind it", help: "Logical block size"),
            OptionDescription(
                name: "buffered", kind: .flag, defaultText: "false",
                help: "Go through the page cache even when the file takes direct I/O"),
        ])

    public static let all = [null, loop]

    /// The target of that name.
    ///
    /// - Throws: `InterfaceError.invalidOption` that lists the targets.
    public static func target(_ name: String) throws(InterfaceError) -> TargetDescription {
        if let target = all.first(where: { $0.name.hasSameBytes(as: name) }) { return target }
        throw .invalidOption(
            message: "there is no target '\(shown(name))'",
            remedy: "use one of: \(all.map(\.name).joined(separator: ", "))", option: "target", value: name)
    }

    /// Text from the other side as a message may carry it: no control characters, not endless.
    static func shown(_ text: String) -> String {
        var result = String.UnicodeScalarView()
        for scalar in text.unicodeScalars.prefix(64) {
            result.append(scalar.isControl ? "?" : scalar)
        }
        if text.unicodeScalars.count > 64 { result.append("…") }
        return String(result)
    }
}

extension Unicode.Scalar {
    /// C0, DEL, C1, and the line and paragraph separators: what must not reach a terminal or a log as it is.
    public var isControl: Bool {
        switch value {
        case 0..<0x20, 0x7F...0x9F, 0x2028, 0x2029: true
        default: false
        }
    }
}

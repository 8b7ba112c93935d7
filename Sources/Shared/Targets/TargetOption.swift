/// An option of a target: its values, meaning and default.
public struct TargetOption: Sendable {
    /// The largest size of a device in bytes: a multiple of every block size that fits into a signed 64-bit number.
    public static let largestSize = UInt64(Int64.max) & ~4095

    /// Its number in launch messages. Numbers below 16 mean the same for every target and for the broker. The others
    /// belong to one target each and are never reused.
    public typealias Number = UInt16

    /// The first that belongs to one target.
    public static let firstOwn: Number = 16

    /// The type and range of its values.
    public enum Kind: Sendable {
        /// Bytes: a range, a required divisor, and whether the value must be a power of two.
        case bytes(ClosedRange<UInt64>, multipleOf: UInt64, powerOfTwo: Bool)
        case count(ClosedRange<UInt64>)
        /// Set or not set.
        case flag
        /// One of several names. Its index is its number, so new names must be appended.
        case choice([String])
        /// UTF-8 without control characters; the range is its length in bytes.
        case text(ClosedRange<Int>)
        /// Milliseconds.
        case duration(ClosedRange<UInt64>)
    }

    public enum Value: Equatable, Sendable {
        /// Bytes, a count, 1 for a flag that is set, the index of a choice, or milliseconds.
        case number(UInt64)
        case text(String)

        public var number: UInt64? {
            if case .number(let number) = self { number } else { nil }
        }
    }

    public let number: Number
    /// Its name in the interface; on the command line with two leading dashes.
    public let name: String
    public let kind: Kind
    /// The default; nil: the target decides.
    public let initial: Value?
    /// How the target decides, for help texts.
    public let otherwise: String?
    /// One sentence without a full stop.
    public let help: String
    /// Its value is what `ubd` and a server agreed on. It stands in the launch message as any other, but in no help, and no user
    /// can give it.
    public private(set) var isAgreed = false

    /// The same option as one that is agreed on.
    var agreed: TargetOption {
        var option = self
        option.isAgreed = true
        return option
    }

    public init(
        _ number: Number, name: String, kind: Kind, initial: Value? = nil, otherwise: String? = nil, help: String
    ) {
        self.number = number
        self.name = name
        self.kind = kind
        self.initial = initial
        self.otherwise = otherwise
        self.help = help
    }

    /// Whether the option can have this value.
    public func accepts(_ value: Value) -> Bool {
        switch (kind, value) {
        case (.bytes(let range, let step, let powerOfTwo), .number(let bytes)):
            range.contains(bytes) && bytes.isMultiple(of: step) && (!powerOfTwo || bytes.nonzeroBitCount == 1)
        case (.count(let range), .number(let number)), (.duration(let range), .number(let number)):
            range.contains(number)
        case (.flag, .number(let number)): number == 1
        case (.choice(let names), .number(let place)): place < UInt64(names.count)
        case (.text(let lengths), .text(let text)):
            lengths.contains(text.utf8.count) && !text.unicodeScalars.contains { $0.isControl }
        default: false
        }
    }
}

// Options that the broker understands, too.
extension TargetOption {
    public enum Common {
        public static let offset: Number = 1
        public static let size: Number = 2
        public static let blockSize: Number = 3
        public static let buffered: Number = 4
    }

    static let offset = TargetOption(
        Common.offset, name: "offset", kind: .bytes(0...largestSize, multipleOf: 512, powerOfTwo: false),
        otherwise: "0", help: "Where in the file the device begins")

    static func size(initial: UInt64? = nil, otherwise: String? = nil) -> TargetOption {
        TargetOption(
            Common.size, name: "size", kind: .bytes(512...largestSize, multipleOf: 512, powerOfTwo: false),
            initial: initial.map(Value.number), otherwise: otherwise, help: "Size of the device")
    }

    static func blockSize(initial: UInt64? = nil, otherwise: String? = nil) -> TargetOption {
        TargetOption(
            Common.blockSize, name: "block-size", kind: .bytes(512...4096, multipleOf: 512, powerOfTwo: true),
            initial: initial.map(Value.number), otherwise: otherwise, help: "Logical block size")
    }

    static let buffered = TargetOption(
        Common.buffered, name: "buffered", kind: .flag,
        help: "Go through the page cache even when the file takes direct I/O")
}

extension Unicode.Scalar {
    /// C0, DEL, C1, and the line and paragraph separators, which must not reach a terminal or log unescaped.
    public var isControl: Bool {
        switch value {
        case 0..<0x20, 0x7F...0x9F, 0x2028, 0x2029: true
        default: false
        }
    }
}

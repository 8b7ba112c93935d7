import Varlink

/// The options of any target, typed and checked; what the broker puts into the launch message of a worker.
public struct TargetOptions: Equatable, Sendable {
    /// Where in the file the device begins, in bytes.
    public var offset: UInt64 = 0
    /// Size of the device in bytes; nil: up to the end of the file.
    public var size: UInt64?
    /// Logical block size in bytes; nil: 512, or that of the block device.
    public var blockSize: UInt32?
    /// Go through the page cache.
    public var buffered = false

    /// Options as they are when none is given.
    public init() {}

    /// Checks text options against what the target declares.
    ///
    /// - Throws: `InterfaceError.invalidOption` with the option, its value, and what would be accepted.
    public init(target: TargetDescription, options: [OptionValue]) throws(InterfaceError) {
        if target.name == TargetCatalog.null.name {
            size = TargetCatalog.nullSize
            blockSize = 512
        }
        for given in options {
            guard let option = target.option(given.name) else {
                let names = target.options.map(\.name).joined(separator: ", ")
                throw .invalidOption(
                    message: "target \(target.name) has no option '\(TargetCatalog.shown(given.name))'",
                    remedy: "its options are: \(names)", option: given.name, value: given.value)
            }
            try set(option, given.value)
        }
        try checkTogether()
    }

    private mutating func set(_ option: OptionDescription, _ text: String) throws(InterfaceError) {
        switch option.name {
        case "offset": offset = try Self.bytes(option, text)
        case "size": size = try Self.bytes(option, text)
        case "block-size": blockSize = UInt32(try Self.bytes(option, text))
        case "buffered": buffered = try Self.flag(option, text)
        default:
            // A mistake of ours in the catalog, which must not end the broker.
            throw .invalidOption(
                message: "option \(option.name) can not be used in this version of ubd", remedy: "leave it out",
                option: option.name, value: text)
        }
    }

    private static func bytes(_ option: OptionDescription, _ text: String) throws(InterfaceError) -> UInt64 {
        guard case .bytes(let range, let step, let powerOfTwo) = option.kind, let value = ByteSize.decimal(text),
            range.contains(value), value.isMultiple(of: step), !powerOfTwo || value.nonzeroBitCount == 1
        else { throw refused(option, text) }
        return value
    }

    private static func flag(_ option: OptionDescription, _ text: String) throws(InterfaceError) -> Bool {
        switch text {
        case "true": return true
        case "false": return false
        default: throw refused(option, text)
        }
    }

    private static func refused(_ option: OptionDescription, _ text: String) -> InterfaceError {
        .invalidOption(
            message: "\(option.name) can not be '\(TargetCatalog.shown(text))'", remedy: "give \(option.range)",
            option: option.name, value: text)
    }

    /// Each value may be right and still not fit the others.
    private func checkTogether() throws(InterfaceError) {
        let block = UInt64(blockSize ?? 512)
        if let size, !size.isMultiple(of: block) {
            throw .invalidOption(
                message: "size \(size) is not a multiple of the block size \(block)",
                remedy: "give size \(max(size - size % block, block)), or a smaller block-size", option: "size",
                value: String(size))
        }
        if !offset.isMultiple(of: block) {
            throw .invalidOption(
                message: "offset \(offset) is not a multiple of the block size \(block)",
                remedy: "give offset \(offset - offset % block), or a smaller block-size", option: "offset",
                value: String(offset))
        }
        if let size, offset > TargetCatalog.largestSize - size {
            throw .invalidOption(
                message: "offset \(offset) and size \(size) together exceed what a file can have",
                remedy: "give a smaller offset or size", option: "size", value: String(size))
        }
    }
}

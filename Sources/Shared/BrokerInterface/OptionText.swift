import Targets
import Varlink

// Options of targets as text: on the wire, in help, and in messages.
extension TargetOption {
    /// The accepted values, for people: "a power of two from 512 to 4096 bytes".
    public var range: String {
        switch kind {
        case .flag: return "true or false"
        case .bytes(let range, _, true):
            return "a power of two from \(range.lowerBound) to \(range.upperBound) bytes"
        case .bytes(let range, let step, false):
            let ceiling =
                range.upperBound >= TargetOption.largestSize ? "" : " and at most \(ByteSize.text(range.upperBound))"
            return "a multiple of \(step) bytes, at least \(range.lowerBound)\(ceiling)"
        case .count(let range): return "a number from \(range.lowerBound) to \(range.upperBound)"
        case .choice(let names): return "one of: \(names.joined(separator: ", "))"
        case .text(let lengths):
            return "\(lengths.lowerBound) to \(lengths.upperBound) bytes without control characters"
        case .duration(let range): return "\(Self.time(range.lowerBound)) to \(Self.time(range.upperBound))"
        }
    }

    /// The default, for people.
    public var defaultText: String {
        if let otherwise { return otherwise }
        switch (kind, initial) {
        case (.flag, _): return "false"
        case (_, nil): return "none"
        case (.bytes, .number(let bytes)?): return bytes < 1024 ? "\(bytes)" : ByteSize.text(bytes)
        case (.choice(let names), .number(let place)?): return names[Int(place)]
        case (.duration, .number(let milliseconds)?): return Self.time(milliseconds)
        case (_, .number(let number)?): return "\(number)"
        case (_, .text(let text)?): return "'\(text)'"
        }
    }

    private static func time(_ milliseconds: UInt64) -> String {
        milliseconds.isMultiple(of: 1000) ? "\(milliseconds / 1000) s" : "\(milliseconds) ms"
    }

    /// Parses a value from the wire: decimal numbers (bytes, milliseconds), "true" and "false", names.
    ///
    /// - Returns: nil for a flag with value false.
    /// - Throws: `InterfaceError.invalidOption` with the accepted values.
    func value(_ text: String) throws(InterfaceError) -> Value? {
        let value: Value?
        switch kind {
        case .bytes, .count, .duration: value = ByteSize.decimal(text).map(Value.number)
        case .flag:
            if text == "false" { return nil }
            value = text == "true" ? .number(1) : nil
        case .choice(let names):
            value = names.firstIndex { $0.hasSameBytes(as: text) }.map { .number(UInt64($0)) }
        case .text: value = .text(text)
        }
        if let value, accepts(value) { return value }
        throw .invalidOption(
            message: "\(name) can not be '\(InterfaceError.shown(text))'", remedy: "give \(range)", option: name,
            value: text)
    }
}

extension TargetManifest {
    /// The target with this name.
    ///
    /// - Throws: `InterfaceError.invalidOption` with a list of the targets.
    public static func named(_ name: String) throws(InterfaceError) -> TargetManifest {
        if let target = TargetList.all.first(where: { $0.name.hasSameBytes(as: name) }) { return target }
        throw .invalidOption(
            message: "there is no target '\(InterfaceError.shown(name))'",
            remedy: "use one of: \(TargetList.names.joined(separator: ", "))", option: "target", value: name)
    }

    /// The option with this name; nil when the target has none.
    public func option(named name: String) -> TargetOption? {
        options.first { $0.name.hasSameBytes(as: name) }
    }
}

extension TargetList {
    public static var names: [String] { all.map(\.name) }
}

extension DeviceOptions {
    /// Parses and checks options against the target's manifest.
    ///
    /// - Throws: `InterfaceError.invalidOption` with the option, its value, and the accepted values.
    public init(target: TargetManifest, options: [OptionValue]) throws(InterfaceError) {
        self.init(initialOf: target)
        for given in options {
            guard let option = target.option(named: given.name) else {
                let names = target.options.map(\.name).joined(separator: ", ")
                throw .invalidOption(
                    message: "target \(target.name) has no option '\(InterfaceError.shown(given.name))'",
                    remedy: names.isEmpty ? "leave it out" : "its options are: \(names)", option: given.name,
                    value: given.value)
            }
            self[option.number] = try option.value(given.value)
        }
        try checkTogether()
    }

    /// Checks the options against each other.
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
        if let size, offset > TargetOption.largestSize - size {
            throw .invalidOption(
                message: "offset \(offset) and size \(size) together exceed what a file can have",
                remedy: "give a smaller offset or size", option: "size", value: String(size))
        }
    }
}

extension InterfaceError {
    /// Makes the other side's text safe for messages: no control characters, limited length.
    static func shown(_ text: String) -> String {
        var result = String.UnicodeScalarView()
        for scalar in text.unicodeScalars.prefix(64) {
            result.append(scalar.isControl ? "?" : scalar)
        }
        if text.unicodeScalars.count > 64 { result.append("…") }
        return String(result)
    }
}

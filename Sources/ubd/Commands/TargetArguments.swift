import ArgumentParser
import BrokerInterface
import Targets

/// The inputs and options of all targets on the command line, from their manifests.
///
/// ArgumentParser looks for options among the properties of a type, in its mirror. Here the mirror is built from the
/// manifests, so help and completions have every option, and a new target needs no change here.
struct TargetArguments: ParsableArguments {
    /// Inputs that were given: names without dashes, paths.
    private(set) var inputs: [(name: String, value: String)] = []
    /// Options that were given; nil for a flag.
    private(set) var given: [(name: String, value: String?)] = []

    init() {}

    /// As if these had been given.
    init(inputs: [(name: String, value: String)], given: [(name: String, value: String?)]) {
        (self.inputs, self.given) = (inputs, given)
    }

    /// One option of the command line, for all targets that have it.
    private struct Declared {
        let name: String
        var letter: Character?
        var isInput = false
        var isFlag = false
        var help: String
        var completion: CompletionKind?
        var valueName = ""
    }

    private static var declared: [Declared] { declaredInputs + declaredOptions }

    private static var declaredInputs: [Declared] {
        everyInput.map { input in
            let targets = TargetList.all.filter { $0.givenInputs.contains { $0.name == input.name } }
            return Declared(
                name: input.name, letter: input.letter, isInput: true, help: input.help + only(targets) + ".",
                completion: input.role == .sockets ? nil : .file(),
                valueName: input.role == .sockets ? "uri" : "path")
        }
    }

    private static var declaredOptions: [Declared] {
        everyOption.map { option in
            let targets = TargetList.all.filter { $0.givenOptions.contains { $0.name == option.name } }
            let defaults = targets.map { target in
                let text = target.option(named: option.name)?.defaultText ?? ""
                return targets.count == 1 ? text : "\(target.name) \(text)"
            }
            var declared = Declared(name: option.name, help: option.help + only(targets) + ".")
            switch option.kind {
            case .flag: declared.isFlag = true
            case .bytes: declared.valueName = "bytes"
            case .count: declared.valueName = "count"
            case .choice(let names):
                declared.valueName = "name"
                declared.completion = .list(names)
            case .text: declared.valueName = "text"
            case .duration: declared.valueName = "time"
            }
            if !declared.isFlag { declared.help += " (default: \(defaults.joined(separator: ", ")))" }
            return declared
        }
    }

    private static var everyInput: [TargetInput] { unique(TargetList.all.flatMap(\.givenInputs), \.name) }

    /// One for each name: options of the same name are of the same kind (a test checks the manifests).
    private static var everyOption: [TargetOption] { unique(TargetList.all.flatMap(\.givenOptions), \.name) }

    private static func unique<Element>(_ all: [Element], _ name: (Element) -> String) -> [Element] {
        var result: [Element] = []
        for one in all where !result.contains(where: { name($0) == name(one) }) { result.append(one) }
        return result
    }

    /// The targets that have it, in parentheses; empty when all do.
    private static func only(_ targets: [TargetManifest]) -> String {
        targets.count == TargetList.all.count ? "" : " (\(targets.map(\.name).joined(separator: ", ")))"
    }
}

// For ArgumentParser.
extension TargetArguments: CustomReflectable {
    var customMirror: Mirror {
        let children: [Mirror.Child] = Self.declared.map { declared in
            let letter: [NameSpecification.Element] = declared.letter.map { [.customShort($0)] } ?? []
            let names = NameSpecification(letter + [.customLong(declared.name)])
            // As for a property wrapper: the storage's name is the key with an underscore before it.
            let label = "_" + declared.name
            if declared.isFlag {
                return (label, Flag<Bool>(wrappedValue: false, name: names, help: ArgumentHelp(declared.help)))
            }
            return (
                label,
                Option<String?>(
                    name: names, help: ArgumentHelp(declared.help, valueName: declared.valueName),
                    completion: declared.completion)
            )
        }
        return Mirror(self, children: children)
    }

    private struct Key: CodingKey {
        let stringValue: String
        var intValue: Int? { nil }
        init(stringValue: String) { self.stringValue = stringValue }
        init?(intValue _: Int) { nil }
    }

    init(from decoder: any Decoder) throws {
        let values = try decoder.container(keyedBy: Key.self)
        for declared in Self.declared {
            let key = Key(stringValue: declared.name)
            if declared.isFlag {
                if try values.decode(Flag<Bool>.self, forKey: key).wrappedValue { given.append((declared.name, nil)) }
            } else if let value = try values.decode(Option<String?>.self, forKey: key).wrappedValue {
                take(declared, value)
            }
        }
    }

    private mutating func take(_ declared: Declared, _ value: String) {
        if declared.isInput {
            inputs.append((declared.name, value))
        } else {
            given.append((declared.name, value))
        }
    }
}

// For a plain line, which has each option at most once.
extension TargetArguments {
    init(_ line: inout PlainLine) {
        for input in Self.everyInput {
            if let value = line.text("--" + input.name, input.letter.map { "-\($0)" }) {
                inputs.append((input.name, value))
            }
        }
        for option in Self.everyOption {
            if case .flag = option.kind {
                if line.flag("--" + option.name) { given.append((option.name, nil)) }
            } else if let value = line.text("--" + option.name) {
                given.append((option.name, value))
            }
        }
    }
}

extension TargetArguments: CustomStringConvertible {
    /// For tests: the mirror has no values.
    var description: String { "\(inputs) \(given)" }
}

extension TargetArguments {
    /// The options for the broker: bytes and times without their units.
    var options: [OptionValue] {
        get throws(CommandFailure) {
            var options: [OptionValue] = []
            for (name, value) in given {
                guard let value else {
                    options.append(OptionValue(name, "true"))
                    continue
                }
                let kind = TargetList.all.lazy.compactMap { $0.option(named: name) }.first?.kind
                switch kind {
                case .bytes:
                    let bytes = ByteCount(argument: value)
                    try bytes.checked("--" + name)
                    options.append(OptionValue(name, String(bytes.bytes)))
                case .duration:
                    guard let milliseconds = Self.milliseconds(value) else {
                        throw CommandFailure(
                            .usage, "Usage", "--\(name) can not be '\(value)'",
                            remedy: "give a whole number of seconds, or one with ms, s or m, as in 500ms")
                    }
                    options.append(OptionValue(name, String(milliseconds)))
                default: options.append(OptionValue(name, value))
                }
            }
            return options
        }
    }

    /// A time as typed, in milliseconds; nil when it is none.
    static func milliseconds(_ text: String) -> UInt64? {
        for (unit, factor) in [("ms", 1), ("s", 1000), ("m", 60_000), ("", 1000)] as [(String, UInt64)]
        where text.hasSuffix(unit) {
            guard let number = ByteSize.decimal(String(text.dropLast(unit.count))) else { return nil }
            let (product, isTooLarge) = number.multipliedReportingOverflow(by: factor)
            return isTooLarge ? nil : product
        }
        return nil
    }
}

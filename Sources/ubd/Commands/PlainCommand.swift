import ArgumentParser
import BrokerInterface

/// A command that parses its own arguments when its line is plain: only options that the command has, each once and
/// each with a valid value. ArgumentParser costs ten million instructions, most of them for the runtime's search for
/// conformances. It parses every other line, so help, errors and completion come from it.
protocol PlainCommand: UBDCommand {
    /// Takes its options from the line. Sets every property: ArgumentParser ends the program when a property without a
    /// value is read. nil when a required option is missing.
    init?(_ line: inout PlainLine)
}

/// The arguments after a command's name, taken option by option.
struct PlainLine {
    /// nil: taken.
    private var arguments: [String?]
    private var isPlain = true

    /// The command of these arguments; nil when ArgumentParser has to parse them.
    static func command(_ arguments: [String]) -> (any UBDCommand)? {
        switch arguments.first {
        case "add": command(AddCommand.self, arguments)
        case "del": command(DeleteCommand.self, arguments)
        default: nil
        }
    }

    private static func command<Command: PlainCommand>(_: Command.Type, _ arguments: [String]) -> Command? {
        var line = PlainLine(arguments: arguments.dropFirst().map { $0 })
        guard var command = Command(&line), line.isPlain, line.arguments.allSatisfy({ $0 == nil }) else { return nil }
        do { try command.validate() } catch { return nil }
        return command
    }

    /// Takes a flag.
    mutating func flag(_ name: String, _ short: String? = nil) -> Bool {
        guard let index = index(name, short) else { return false }
        arguments[index] = nil
        return true
    }

    /// Takes an option with its value.
    mutating func text(_ name: String, _ short: String? = nil) -> String? {
        guard let index = index(name, short) else { return nil }
        guard index + 1 < arguments.count, let value = arguments[index + 1], !value.isEmpty,
            !value.hasPrefix("-")
        else {
            isPlain = false
            return nil
        }
        arguments[index] = nil
        arguments[index + 1] = nil
        return value
    }

    /// Takes an option whose value is not just text.
    mutating func value<Value: ExpressibleByArgument>(_ name: String, _ short: String? = nil) -> Value? {
        guard let text = text(name, short) else { return nil }
        let value = Value(argument: text)
        if value == nil { isPlain = false }
        return value
    }

    private func index(_ name: String, _ short: String?) -> Int? {
        arguments.firstIndex { $0 == name || short != nil && $0 == short }
    }
}

extension AddCommand: PlainCommand {
    init?(_ line: inout PlainLine) {
        self.init()
        guard let target = line.text("--target", "-t") else { return nil }
        self.target = target
        number = line.value("--number", "-n")
        queues = line.value("--queues", "-q") ?? AddPlan.defaultQueues
        depth = line.value("--depth", "-d") ?? AddPlan.defaultDepth
        maxIOSize = line.value("--max-io-size")
        readOnly = line.flag("--read-only")
        ofTarget = TargetArguments(&line)
        recovery = line.text("--recovery")
        ioTimeout = line.value("--io-timeout")
        mode = line.text("--mode")
        cpus = line.text("--cpus")
        shared = line.flag("--shared")
        output = OutputOptions(&line)
    }
}

extension DeleteCommand: PlainCommand {
    init?(_ line: inout PlainLine) {
        self.init()
        number = line.value("--number", "-n")
        all = line.flag("--all", "-a")
        force = line.flag("--force")
        output = OutputOptions(&line)
    }
}

extension OutputOptions {
    fileprivate init(_ line: inout PlainLine) {
        self.init()
        asJSON = line.flag("--json")
    }
}

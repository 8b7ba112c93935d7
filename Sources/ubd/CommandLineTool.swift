import ArgumentParser
import BrokerInterface
import SystemCalls
import Varlink

/// From arguments to an exit status: parses, performs, and reports a failure in one line.
enum CommandLineTool {
    /// What is behind "--" is no option of ours.
    private static func wantsJSON(_ arguments: [String]) -> Bool { arguments.prefix { $0 != "--" }.contains("--json") }

    static func run(_ arguments: [String], _ environment: CommandEnvironment) -> Int32 {
        let status = perform(arguments, environment)
        environment.console.finish()
        guard let lost = environment.console.lost else { return status }
        // A script must not take a part of a device's name, or of a list, for the whole.
        let changes = ["add", "del", "disable", "enable", "mount", "recover", "resize", "umount", "upgrade"].contains(
            arguments.first)
        let failure = CommandFailure(
            .failed, "OutputLost", outputLost(lost.errno),
            remedy: changes
                ? "the command itself may have succeeded: see 'ubd list'"
                : "send the output to a place that has room and a reader")
        return max(status, report(failure, asJSON: false, environment.console))
    }

    private static func perform(_ arguments: [String], _ environment: CommandEnvironment) -> Int32 {
        do {
            if let command = PlainLine.command(arguments) { return try command.perform(environment).rawValue }
            try Repetition.refuse(arguments)
            if arguments.first == "help", let topic = arguments.dropFirst().first, !topic.hasPrefix("-"),
                !UBD.configuration.subcommands.contains(where: { $0._commandName == topic })
            {
                throw CommandFailure(.usage, "Usage", "there is no command '\(topic)'", remedy: "see 'ubd --help'")
            }
            var command = try UBD.parseAsRoot(arguments)
            guard let command = command as? any UBDCommand else {
                // Only ArgumentParser's own commands get here: help, and the generator of shell completions.
                try command.run()
                return 0
            }
            return try command.perform(environment).rawValue
        } catch let failure as CommandFailure {
            return report(failure, asJSON: wantsJSON(arguments), environment.console)
        } catch {
            return finishParsing(error, arguments, environment.console)
        }
    }

    /// Help and version are errors, too; any other error is a wrong command line.
    private static func finishParsing(_ error: any Error, _ arguments: [String], _ console: any Console) -> Int32 {
        guard UBD.exitCode(for: error) != .success else {
            console.out(UBD.fullMessage(for: error))
            return 0
        }
        let names = UBD.configuration.subcommands.map { $0._commandName }
        let subcommand = arguments.first.flatMap { names.contains($0) ? $0 + " " : nil } ?? ""
        var message = UBD.message(for: error).split(whereSeparator: \.isNewline).joined(separator: " ")
        while message.hasSuffix(".") { message.removeLast() }
        message += unfit(message, arguments)
        let failure = CommandFailure(
            .usage, "Usage", message.isEmpty ? "wrong arguments" : message, remedy: "see 'ubd \(subcommand)--help'")
        return report(failure, asJSON: wantsJSON(arguments), console)
    }

    /// ArgumentParser takes a value that begins with a dash for an option, and says that the value is missing.
    private static func unfit(_ message: String, _ arguments: [String]) -> String {
        guard message.hasPrefix("Missing value for '") else { return "" }
        let option = message.dropFirst("Missing value for '".count).prefix { $0 != " " && $0 != "'" }
        guard let index = arguments.firstIndex(of: String(option)), index + 1 < arguments.count else { return "" }
        return ": '\(arguments[index + 1])' can not be one"
    }

    private static func report(_ failure: CommandFailure, asJSON: Bool, _ console: any Console) -> Int32 {
        console.error(failure.line)
        if asJSON { console.out(failure.json.text) }
        return failure.status.rawValue
    }
}

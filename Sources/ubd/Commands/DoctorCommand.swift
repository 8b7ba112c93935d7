import ArgumentParser
import BrokerInterface
import Varlink

/// `ubd doctor`: what the host lacks, and how to get it.
struct DoctorCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor", abstract: "Check what ubd needs on this host, and say how to get what is missing.",
        discussion: """
            One line for each check: ok, warning or missing, what was found, and what fixes it. The last line
            says that this host is ready, or what to do next. Exits with 7 when something is missing.
            """)

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        let checks = Self.checks(environment)
        if output.asJSON {
            environment.console.out(JSON.array(checks.map(\.json)).indentedText)
        } else {
            for check in checks { environment.console.out(check.line) }
            environment.console.out(Self.next(checks))
        }
        return checks.contains { $0.status == .missing } ? .hostLacksSomething : .success
    }

    /// The last line for people. Checks come in the order in which things depend on each other, so the first that is
    /// missing is what to do next.
    static func next(_ checks: [Check]) -> String {
        if let missing = checks.first(where: { $0.status == .missing }) {
            return "next: \(missing.remedy ?? missing.message)".printable
        }
        let warnings = checks.count { $0.status == .warning }
        let despite = warnings == 0 ? "" : warnings == 1 ? " (with 1 warning)" : " (with \(warnings) warnings)"
        return "ready\(despite): ubd add -t loop -f FILE"
    }

    static func checks(_ environment: CommandEnvironment) -> [Check] {
        let broker: Result<InfoReply, CommandFailure>
        do { broker = .success(try BrokerClient(environment: environment).info(seconds: 5)) } catch {
            broker = .failure(BrokerProcess.explain(error, environment))
        }
        return KernelChecks.all(environment.host) + Installation.checks(environment.host, broker: broker)
            + UserChecks.all(environment.host, broker: broker)
    }
}

import ArgumentParser
import BrokerInterface
import SystemCalls

/// `ubd top`: what the caller's devices do, on all of the terminal.
struct TopCommand: UBDCommand {
    static let configuration = CommandConfiguration(
        commandName: "top",
        abstract: "Show what your devices do at this moment, on the whole screen (as root: everyone's).",
        discussion: """
            EXAMPLES
              ubd top                          'h' shows the keys, 'q' quits
              ubd top --sort p99               the slowest first
              ubd top --delay 5 -n 0           one device, every five seconds
              ubd top --count 3 >report.txt    three tables, for a report
              ubd top --json | jq .rows        one JSON object per line

            COLUMNS
              \(TopView.help.dropFirst(11).prefix(6).map { $0.dropFirst(2) }.joined(separator: "\n  "))
            'ubd stats --help' says how P50 and P99 are measured.
            Where the output is no terminal, the table is printed again and again.
            """)

    @Option(
        name: [.customShort("n"), .long], help: ArgumentHelp("Only this device, and its queues.", valueName: "id"))
    var number: UInt32?

    @Option(name: [.customShort("d"), .long], help: ArgumentHelp("Seconds between two looks.", valueName: "seconds"))
    var delay = Interval.second

    @Option(
        name: .customLong("sort"), help: ArgumentHelp("By which column: \(TopColumn.names).", valueName: "column"))
    var sort = TypedColumn(argument: "iops")

    @Option(
        name: .customLong("count"), help: ArgumentHelp("End after so many tables; without keys.", valueName: "tables"))
    var count: UInt32?

    @OptionGroup var output: OutputOptions

    func perform(_ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus {
        var view = TopView(sort: try sort.column(), interval: try delay.milliseconds(option: "--delay"))
        if let count, count == 0 {
            throw CommandFailure(.usage, "Usage", "--count can not be 0", remedy: "give the number of tables")
        }
        if count == nil, !output.asJSON, environment.screen() != nil {
            var loop = TopLoop(view, number: number, environment)
            return try loop.run()
        }
        return try printed(&view, environment)
    }

    /// Table after table, or object after object, until somebody ends it.
    private func printed(_ view: inout TopView, _ environment: CommandEnvironment) throws(CommandFailure) -> ExitStatus
    {
        let (client, console) = (BrokerClient(environment: environment), environment.console)
        var sampler = TopSampler(number: number)
        let opened: Set<UInt32> = number.map { [$0] } ?? []
        _ = try sampler.sample(client, opened: opened, now: environment.now)
        var left = count
        while console.lost == nil, left != 0 {
            environment.pauseWatching(view.interval)
            guard console.lost == nil, let sample = try sampler.sample(client, opened: opened, now: environment.now)
            else { continue }
            view.take(sample)
            if output.asJSON {
                console.out(sample.json.text)
            } else {
                for line in view.plain(time: ListCommand.localTime(environment.date())) { console.out(line) }
                if left != 1 { console.out("") }
            }
            left = left.map { $0 - 1 }
        }
        return count != nil && left == 0 ? .success : .failed
    }
}

/// The value of --sort as typed: for ArgumentParser a value that does not parse is a missing value.
struct TypedColumn: ExpressibleByArgument, CustomStringConvertible, Equatable {
    let description: String

    init(argument: String) { description = argument }

    func column() throws(CommandFailure) -> TopColumn {
        guard let column = TopColumn(rawValue: description) else {
            throw CommandFailure(
                .usage, "Usage", "--sort can not be '\(description)'", remedy: "choose from \(TopColumn.names)")
        }
        return column
    }
}

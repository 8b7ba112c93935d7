import Targets
import Testing

@testable import BrokerInterface

@Suite("The manifests of the targets")
struct ManifestTests {
    @Test("have names and numbers of their own, those of options too")
    func unique() {
        #expect(
            TargetList.all.map(\.number) == [1, 2, 3, 4, 5, 6, 7],
            "a new target gets the next number; none is ever used again")
        #expect(Set(TargetList.names).count == TargetList.all.count)
        for target in TargetList.all {
            #expect(TargetList.target(number: target.number) == target)
            #expect(Set(target.options.map(\.number)).count == target.options.count)
            let names = target.options.map(\.name) + target.inputs.map(\.name)
            #expect(Set(names).count == names.count)
            for option in target.options { #expect(option.number > 0) }
        }
    }

    /// The command line has one option of each name, for all targets.
    @Test("agree on what kind of option, or input, a name is")
    func agree() {
        func shape(_ option: TargetOption) -> String {
            switch option.kind {
            case .bytes: "bytes"
            case .count: "count"
            case .flag: "flag"
            case .choice(let names): names.joined(separator: "|")
            case .text: "text"
            case .duration: "duration"
            }
        }
        var shapes: [String: String] = [:]
        var numbers: [TargetOption.Number: String] = [:]
        for target in TargetList.all {
            for option in target.options {
                #expect(shapes[option.name, default: shape(option)] == shape(option), "\(option.name)")
                shapes[option.name] = shape(option)
                // Below 16 a number means the same everywhere.
                if option.number < 16 {
                    #expect(numbers[option.number, default: option.name] == option.name)
                    numbers[option.number] = option.name
                }
            }
            for input in target.inputs {
                #expect(shapes[input.name, default: "input"] == "input")
                shapes[input.name] = "input"
            }
        }
    }

    @Test("have defaults that their options can have, modes that they can serve in, and room for their submissions")
    func sound() {
        for target in TargetList.all {
            for option in target.options {
                if let initial = option.initial { #expect(option.accepts(initial), "\(option.name)") }
            }
            #expect(target.modes.contains(.copy) && target.modes.allSatisfy(target.takes))
            #expect(Set(target.modes).count == target.modes.count)
            #expect((1...16).contains(target.submissions.perRequest))
            #expect((target.survival == .nothing) == target.inputs.isEmpty || target.survival == .memory)
            // Only their order identifies the descriptors.
            #expect(target.inputs.dropLast().allSatisfy { $0.count.count == 1 && !$0.hasTwin })
            // The most that AddReply can ask for.
            let queues = target.queues == .onePerConnection ? TargetManifest.mostDescriptors : 1
            #expect(target.descriptors(DeviceOptions(), queues: queues).upperBound <= TargetManifest.mostDescriptors)
        }
    }

    @Test("have options that change what the worker is told")
    func complete() throws {
        for target in TargetList.all {
            let without = try DeviceOptions(target: target, options: [])
            for option in target.options {
                let value =
                    switch option.kind {
                    case .flag: "true"
                    case .bytes: option.initial == .number(4096) ? "8192" : "4096"
                    case .count(let range), .duration(let range):
                        option.initial == .number(range.upperBound) ? "\(range.lowerBound)" : "\(range.upperBound)"
                    case .choice(let names): option.initial == .number(0) ? names[1] : names[0]
                    case .text(let lengths): String(repeating: "x", count: lengths.upperBound)
                    }
                let with = try DeviceOptions(target: target, options: [OptionValue(option.name, value)])
                #expect(with != without, "\(target.name) --\(option.name) changes nothing")
            }
        }
    }

    @Test("are in the description of the interface, option by option")
    func described() {
        for target in TargetList.all {
            for option in target.options {
                #expect(
                    BrokerAPI.description.contains(
                        "# \(target.name), \(option.name): \(option.help): \(option.range). "))
            }
        }
    }
}

/// Declarations that future targets need.
@Suite("A manifest can say")
struct ManifestLanguageTests {
    static let everything = TargetManifest(
        name: "everything", number: 99, summary: "Has all that a manifest can say",
        inputs: [
            TargetInput(.data, name: "file", help: "The content"),
            TargetInput(.header, name: "header", isReadOnly: true, help: "How to read it"),
            TargetInput(.secret, name: "key", help: "A key"),
            TargetInput(
                .base, name: "base", count: 0...3, isReadOnly: true, hasTwin: true, help: "What it begins with"),
        ],
        options: [
            TargetOption(16, name: "retries", kind: .count(1...9), initial: .number(3), help: "How often"),
            TargetOption(17, name: "cipher", kind: .choice(["aes", "chacha"]), initial: .number(1), help: "Which"),
            TargetOption(18, name: "export", kind: .text(1...8), help: "Its name there"),
            TargetOption(19, name: "patience", kind: .duration(100...60_000), initial: .number(2500), help: "How long"),
            TargetOption(20, name: "part", kind: .bytes(0...4096, multipleOf: 16, powerOfTwo: false), help: "How much"),
            TargetOption(21, name: "eager", kind: .flag, help: "At once"),
        ], modes: [.copy], queues: .one, submissions: Submissions(perRequest: 3, ofQueue: 2),
        workerData: TargetManifest.WorkerData(reads: true, writes: false), survival: .inputs)

    private func options(_ list: [(String, String)]) throws(InterfaceError) -> DeviceOptions {
        try DeviceOptions(target: Self.everything, options: list.map { OptionValue($0.0, $0.1) })
    }

    @Test("options of every type, which are read with their defaults")
    func read() throws {
        let none = try options([])
        #expect(none[16] == .number(3) && none[17] == .number(1) && none[18] == nil && none[19] == .number(2500))
        let all = try options([
            ("eager", "true"), ("export", "größe"), ("patience", "100"), ("cipher", "aes"), ("retries", "9"),
            ("part", "4096"),
        ])
        #expect(all[16] == .number(9) && all[17] == .number(0) && all[18] == .text("größe"))
        #expect(all[19] == .number(100) && all[20] == .number(4096) && all[21] == .number(1))
        #expect(all.entries.map(\.number) == [16, 17, 18, 19, 20, 21])
        #expect(try options([("eager", "false")]) == none)
    }

    @Test(
        "values that are refused with what would do",
        arguments: [
            ("retries", "0", "a number from 1 to 9"), ("retries", "ten", "a number from 1 to 9"),
            ("cipher", "AES", "one of: aes, chacha"), ("export", "", "1 to 8 bytes without control characters"),
            ("export", "123456789", "1 to 8 bytes without control characters"),
            ("export", "a\nb", "1 to 8 bytes without control characters"), ("patience", "99", "100 ms to 60 s"),
            ("patience", "1s", "100 ms to 60 s"), ("part", "8", "a multiple of 16 bytes, at least 0 and at most 4 KiB"),
            ("eager", "yes", "true or false"),
        ])
    func refused(option: String, value: String, remedy: String) {
        let error = #expect(throws: InterfaceError.self) { try options([(option, value)]) }
        #expect(error?.remedy == "give " + remedy)
    }

    @Test("what holds without an option, for people")
    func defaults() {
        #expect(Self.everything.options.map(\.defaultText) == ["3", "chacha", "none", "2500 ms", "none", "false"])
    }

    @Test("how many descriptors its inputs are, also one for each connection")
    func descriptors() {
        #expect(Self.everything.descriptors(DeviceOptions(), queues: 1) == 3...9)
        var buffered = DeviceOptions()
        buffered.buffered = true
        #expect(Self.everything.descriptors(buffered, queues: 1) == 3...6)
        let remote = TargetManifest(
            name: "remote", number: 98, summary: "",
            inputs: [
                TargetInput(.secret, name: "key", help: ""), TargetInput(.sockets, name: "server", help: ""),
            ], modes: [.copy], queues: .onePerConnection, submissions: Submissions(), survival: .inputs)
        #expect(remote.descriptors(DeviceOptions(), queues: 4) == 5...5)
    }

    @Test("that data passes through the worker, which leaves no mode without a copy; and what its rings need")
    func derived() {
        #expect(DataMode.allCases.filter(Self.everything.takes) == [.copy, .batch])
        #expect(DataMode.allCases.filter(TargetManifest.null.takes) == DataMode.allCases)
        #expect(Self.everything.submissions.entries(depth: 128) == 386)
        #expect(TargetManifest.loop.submissions.entries(depth: 128) == 128)
    }
}

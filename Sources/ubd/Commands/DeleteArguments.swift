import ArgumentParser

/// The command line of `ubd del`.
struct DeleteArguments: PlainArguments {
    static let configuration = CommandConfiguration(
        commandName: "del",
        abstract: "Flush and delete a device.",
        discussion: """
            EXAMPLES
              ubd del -n 0            refuses when it is mounted, swap or held, and names the holder
              ubd del -a              all your devices (as root: everyone's)
              ubd del -n 0 --generation 17    only if it is still the device that 'ubd list --json' showed
              ubd del -n 0 --force    kills the worker first: for a device that hangs; I/O under way fails

            The devices of 'ubd add --partition all' are deleted together: naming one of them deletes all of them, or none
            when one is in use.
            Before Linux 7.0 nobody can tell that a program merely has the device open, as a virtual machine has:
            the device is deleted, and the program's reads and writes fail. Flushing may take at most 30 s.
            """)

    @Option(
        name: [.customShort("n"), .long], help: ArgumentHelp("N of /dev/ubdbN.", valueName: "id"))
    var number: UInt32?

    @Option(
        help: ArgumentHelp(
            "Only the device of this generation ('ubd list --json'), not a later one with its number.",
            valueName: "generation"))
    var generation: UInt64?

    @Flag(name: [.short, .long], help: "Delete all your devices.")
    var all = false

    @Flag(help: "Do not flush, do not check who uses the device, kill the worker first.")
    var force = false

    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (number != nil) != all else {
            throw ValidationError("Give either --number ID or --all")
        }
        if generation != nil, number == nil {
            throw ValidationError("--generation is of one device: give --number ID with it")
        }
    }

    var command: DeleteCommand {
        DeleteCommand(number: number, generation: generation, all: all, force: force, asJSON: output.asJSON)
    }
}

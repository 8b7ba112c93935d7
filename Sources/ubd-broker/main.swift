import Glibc

exit(Startup.main(Array(CommandLine.arguments.dropFirst())))

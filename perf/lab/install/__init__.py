"""What installing this project costs: packages, megabytes and the seconds of an import, in fresh environments."""
